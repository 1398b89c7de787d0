"""One request, its result, and the protocol every engine fulfils.

`augment.feeding` keeps an engine full, `augment.feeding.registry` makes sure a worker process has one engine per model.
Each engine family is one module here; `ENGINES` in `config` is the table of them.
"""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from sharding.errors import MillError

ELSEWHERE = "elsewhere"
"""Family of the engine that stands for one in another process of this machine; never in a ledger."""


@plain_dataclass(frozen=True, kw_only=True, eq=False)
class Closing:
    """How a generation that reaches its cap is brought to an end; see `augment.traces`.

    Attributes:
        reserve_tokens: kept back from the cap for the closing call, the phrase included.
        phrase, phrase_token_ids: what is put before the closing call's own tokens; may be empty.
    """

    reserve_tokens: int
    phrase: str
    phrase_token_ids: np.ndarray


@plain_dataclass(frozen=True, kw_only=True, eq=False)
class GenerationRequest:
    """One generation to make.

    Attributes:
        key: the ledger key of the sample; names the request in messages and gives its jitter and its seed.
        prompt_token_ids: (prompt_tokens,) uint32 under the generator's tokenizer.
        max_tokens, min_tokens: cap and floor of the generated tokens.
        expected_tokens: what the generation is expected to take; the longest goes first. 0: `max_tokens`.
        kind: generations of one kind are alike in length, which is learned from those that end; "": of no kind.
        prefix_group: prompts of one group begin alike, by as much as a document; "": of no group. Neither decides
            anything but when and where the request is sent.
        seed: 31 bits, from the key.
        stop: texts that end the generation; kept in the text only with `include_stop`.
        closing: how to close the generation at its cap, or None to leave it cut.
    """

    key: str
    prompt_token_ids: np.ndarray
    max_tokens: int
    min_tokens: int = 0
    expected_tokens: float = 0.0
    kind: str = ""
    prefix_group: str = ""
    temperature: float = 0.6
    top_p: float = 0.9
    seed: int = 0
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    repetition_detection: bool = False
    closing: Closing | None = None


@plain_dataclass(frozen=True, kw_only=True, eq=False)
class Generation:
    """What an engine made of a request.

    Attributes:
        text: the generated text; special tokens and stop text left out, but for the marks of thinking.
        token_ids: (generated_tokens,) uint32, what the text says, special tokens included; ends with a whole character
            where the cap cut it.
        sum_logprobs: sum over the tokens of ln p under the sampling distribution, or None.
        finish_reason: "stop" (the model or a stop text), "length" (the cap), "repetition" (a loop was cut), or
            `augment.traces.PARTIAL` of what an interrupted request has so far.
        engine_version: of the engine software.
        forced: a closing call was made.
        unseen_tokens: paid for and not in `token_ids`: hidden reasoning, and what was cut off behind its end.
        model: that says it wrote it, where that isn't the one that was asked.
        continued: how often it was interrupted and gone on with.
    """

    text: str
    token_ids: np.ndarray
    sum_logprobs: float | None
    finish_reason: str
    engine_version: str
    forced: bool = False
    unseen_tokens: int = 0
    model: str | None = None
    continued: int = 0

    @property
    def paid_tokens(self) -> int:
        """How many tokens were generated, seen or not."""
        return len(self.token_ids) + self.unseen_tokens


class GenerationFailed(MillError):
    """This request failed this time; it may succeed when it is tried again.

    Attributes:
        retry_after_s: the engine has no room for so many seconds; it is tried again then, and this counts as no try.
            The engine sees to it that this doesn't go on for ever. None: the request was tried and failed.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RequestRejected(MillError):
    """The engine will not take this request, such as one too long for the model.

    Attributes:
        may_pass: another run may have more luck; else it would be refused again.
    """

    def __init__(self, message: str, *, may_pass: bool = False) -> None:
        super().__init__(message)
        self.may_pass = may_pass


class Interrupted(MillError):
    """The engine has stopped working on this request, because it is told to end; nothing is wrong with the request.

    Attributes:
        generated: what there is of it, with the finish reason `PARTIAL`; None where nothing is, or is known.
    """

    def __init__(self, message: str, generated: Generation | None = None) -> None:
        super().__init__(message)
        self.generated = generated


class EngineDead(MillError):
    """The engine is gone with all that was in flight; a new one has to be started."""


class Engine(Protocol):
    """A generator at work. All coroutines run on one event loop, that of the `Feeder` that owns the engine.

    Attributes:
        family: of the ledger's `engine` column, or `ELSEWHERE`.
        version: of the engine software; known once started.
        capacity: requests in flight that keep it full; before `start` an estimate.
        memory_share: the share of the machine's accelerator memory it takes while it runs, 0 to 1.
    """

    @property
    def family(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def capacity(self) -> int: ...

    @property
    def memory_share(self) -> float: ...

    async def start(self) -> None:
        """Load the model. Called once, before the first `generate`.

        Raises:
            MillError: it can't be started: why, and the way out.
        """

    async def generate(self, request: GenerationRequest) -> Generation:
        """Make one generation; many run at once.

        Raises:
            RequestRejected: never to be tried again.
            GenerationFailed: to be tried again.
            EngineDead: the engine is gone.
        """

    async def close(self) -> None:
        """End everything the engine started, processes included. Safe to call twice and after a death."""


@runtime_checkable
class Placeable(Protocol):
    """An engine that takes accelerators of the machine, and can be told which."""

    def place(self, replica: int, replicas: int) -> None:
        """Work on this one, from 0, of so many equal slices of what is visible. Called before `start`."""


@runtime_checkable
class Interruptible(Protocol):
    """An engine that can say what there is of the requests it is at work on."""

    async def interrupt(self) -> None:
        """Have every `generate` that is under way, and any that is yet called, raise `Interrupted` soon."""
