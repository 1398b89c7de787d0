"""What a recipe is given and gives back.

    async def twice(segment: SegmentView, generate: Generate) -> Made:
        draft = await generate("draft", share=0.5)
        return await generate("again", prompt="again.txt", draft=draft)

`generate` names a step and its prompt; further arguments fill the prompt's slots beside {text}, {context} and {focus}.
What it gives is awaited, alone or with others by `generate.several`. All calls of a run together stay within the tier's
`max_tokens`: `generate.left` says what remains, and a call gets no more.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from augment.marks import split_thinking
from augment.traces import answer_of
from sharding.errors import MillError, RequestError
from sharding.records.types import LedgerRow

LEAST_TOKENS = 16
"""A call with a smaller cap says nothing."""

_STEP = re.compile(r"[A-Za-z][\w-]{0,30}( \d{1,3})?")
_SLOT = re.compile(r"[a-z][a-z0-9_]*")

Wants = Literal["thought", "answer"]


class NothingLeft(MillError):
    """So little of the tier's cap is left that a call would say nothing; a recipe may end with what it has."""


@dataclass(frozen=True, kw_only=True)
class SegmentView:
    """What a recipe sees of its segment: as much as a prompt may show.

    Attributes:
        text: the segment.
        context: what precedes it in the document; may be empty.
        focus: its hardest spans, the hardest first.
    """

    text: str
    context: str
    focus: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a call made.

    Attributes:
        key: of its ledger row.
        step: as the recipe called it.
        text: its thought or its answer, as was asked for; without marks of thinking.
        tokens: generated and paid.
        closed: "natural", "forced" or "cut"; see `augment.traces.Trace`.
    """

    key: str
    step: str
    text: str
    tokens: int
    closed: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """One generation that a recipe asks for; awaited, it gives `Made`.

    Attributes:
        step: as the recipe calls it; "critique 2" is the second time of "critique".
        number: how often the run has asked for this step before.
        prompt: name or path of the template.
        model: name of one of `models`.
        temperature, top_p: where they are not those of `sampling`.
        wants: the thought, or the answer that follows it; a call that wants an answer isn't ended with the thinking.
        about: what its prompt shows as {text}; None: the run's segment.
        slots: slot of the prompt → text.
        made_from: keys of the calls that it was made from.
    """

    step: str
    number: int
    prompt: str
    model: str
    max_tokens: int
    temperature: float | None
    top_p: float | None
    wants: Wants
    slots: Mapping[str, str]
    made_from: tuple[str, ...]
    about: str | None = None

    def __await__(self) -> Generator[tuple[Call, ...], tuple[Made, ...], Made]:
        return (yield (self,))[0]

    def made(self, row: LedgerRow) -> Made:
        """What its row says."""
        text = split_thinking(row.text)[0] if self.wants == "thought" else answer_of(row.text)
        return Made(key=row.key, step=self.step, text=text, tokens=row.thought_tokens, closed=row.closed)


@dataclass(frozen=True)
class _Several:
    calls: tuple[Call, ...]

    def __await__(self) -> Generator[tuple[Call, ...], tuple[Made, ...], list[Made]]:
        return list((yield self.calls)) if self.calls else []


@dataclass(frozen=True, kw_only=True)
class StepRequest:
    """What the config says of a step; None where it leaves that to the recipe."""

    prompt: str | None = None
    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None


@dataclass(frozen=True, kw_only=True)
class RecipeRequest:
    """What a tier asks of its recipe.

    Attributes:
        name: of the recipe; see `augment.recipes.load_recipe`.
        prompt, model: the tier's.
        max_tokens: cap on all calls of a run together.
        steps: what the config says, by step.
    """

    name: str
    prompt: str
    model: str
    max_tokens: int
    rounds: int = 1
    drafts: int = 3
    steps: Mapping[str, StepRequest] = field(default_factory=dict)

    def step(self, name: str) -> StepRequest:
        """What the config says of a step, whichever time it is asked for."""
        return self.steps.get(name.partition(" ")[0], StepRequest())


class Generate:
    """What a recipe asks for generations with.

    Attributes:
        rounds, drafts: the tier's.
    """

    def __init__(self, request: RecipeRequest) -> None:
        self._request = request
        self.rounds, self.drafts = request.rounds, request.drafts
        self._spent = 0
        self._reserved: dict[Call, int] = {}
        self._asked: dict[str, int] = {}
        self._made: list[Made] = []

    @property
    def left(self) -> int:
        """Tokens of the tier's cap that are neither generated nor promised to a call."""
        return max(0, self._request.max_tokens - self._spent - sum(self._reserved.values()))

    def __call__(
        self,
        step: str,
        *,
        prompt: str | None = None,
        share: float = 1.0,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        wants: Wants = "thought",
        about: str | None = None,
        made_from: Iterable[Made] | None = None,
        **slots: Made | str,
    ) -> Call:
        """A call; await it. What the config says of the step comes before what is said here.

        Args:
            step: a name, such as "critique" or, the second time, "critique 2".
            prompt: name or path of a template; None: the tier's.
            share: of what is left, for its cap.
            max_tokens: its cap, in place of a share; never more than is left.
            about: another text in the segment's place.
            made_from: the calls that plain texts in `slots` come from; None: all that have ended.
            slots: slot of the prompt → what fills it.

        Raises:
            NothingLeft: its cap would be below `LEAST_TOKENS`.
            RequestError: the step's or a slot's name can't be one.
        """
        if not _STEP.fullmatch(step):
            raise RequestError(f"recipe {self._request.name}: {step!r} can't be a step: letters, and a number after it")
        for slot in slots:
            if not _SLOT.fullmatch(slot) or slot in ("text", "context", "focus"):
                raise RequestError(f"recipe {self._request.name}: {slot!r} can't be a slot of its own in a prompt")
        told = self._request.step(step)
        cap = told.max_tokens or (max(int(self.left * share), LEAST_TOKENS) if max_tokens is None else max_tokens)
        cap = min(cap, self.left)
        if cap < LEAST_TOKENS:
            raise NothingLeft(
                f"recipe {self._request.name}: {cap} tokens are left for the step {step}, too few to say anything; "
                f"raise max_tokens of the tier ({self._request.max_tokens} for all calls together)"
            )
        if made_from is None:
            given = [filling for filling in slots.values() if isinstance(filling, Made)]
            made_from = given if len(given) == len(slots) else self._made
        call = Call(
            step=step,
            number=self._asked.get(step, 0),
            prompt=told.prompt or prompt or self._request.prompt,
            model=told.model or self._request.model,
            max_tokens=cap,
            temperature=temperature if told.temperature is None else told.temperature,
            top_p=top_p if told.top_p is None else told.top_p,
            wants=wants,
            slots={name: one.text if isinstance(one, Made) else one for name, one in sorted(slots.items())},
            made_from=tuple(sorted({made.key for made in made_from})),
            about=about,
        )
        self._asked[step] = call.number + 1
        self._reserved[call] = cap
        return call

    def several(self, calls: Iterable[Call]) -> Awaitable[list[Made]]:
        """Calls that are made side by side; await it for what they made, in their order."""
        return _Several(tuple(calls))

    def answered(self, call: Call, made: Made) -> None:
        """Take note of what a call made; for `Walk`."""
        self._spent += made.tokens
        self._reserved.pop(call, None)
        self._made.append(made)

    @property
    def spent(self) -> int:
        """Tokens generated so far."""
        return self._spent


Recipe = Callable[[SegmentView, Generate], Coroutine[Any, Any, Made | str]]
"""An async function; what it returns is the thought."""
