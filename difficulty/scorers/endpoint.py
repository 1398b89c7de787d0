"""Surprisal under a served model: the prompt logprobs of vLLM servers, for whoever can't load the model here.

Windows and start token are those of `causal_lm`; each window is one request, several are at the servers at once, and
`server_pool` says which server gets which. Slower than `causal_lm`: the answers carry every token in words.
"""

from __future__ import annotations

import asyncio
import math
import threading
import uuid
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec
import numpy as np

from difficulty.config import DifficultyConfig
from difficulty.scorers.protocol import TokenScores
from difficulty.scorers.reading import NatsAfter, rows_after, window_of
from difficulty.scorers.windows import Window, cut_windows
from sharding.errors import MillError, RequestError
from sharding.models.first_look import look_at
from sharding.models.served import Served
from sharding.models.server import EndpointFailed, EndpointFull, EndpointRefused
from sharding.models.server_pool import COMPLETIONS, EndpointPool
from sharding.models.store import model_fingerprint, resolve_model
from sharding.models.tokenizer import load_tokenizer

IN_FLIGHT_PER_URL = 16

MAX_ATTEMPTS = 6
BACKOFF_S = 1.0
"""Tries per window; the wait after the first failure, doubled with each."""

_MOST_BYTES, _MOST_BYTES_PER_LOGPROB = 1 << 20, 1 << 9
"""Of an answer; a log probability comes with its token's id, text and rank, in JSON."""

_EXTRA_TOKENS = 2  # the start token, and the one that a server must generate to answer at all

_T = TypeVar("_T")


class _TokenLogprob(msgspec.Struct):
    logprob: float


class _Choice(msgspec.Struct):
    prompt_logprobs: list[dict[int, _TokenLogprob] | None] | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]


def make(config: DifficultyConfig) -> EndpointScorer:
    """The scorer that the config asks for, its servers reached."""
    return EndpointScorer(config)


def look(config: DifficultyConfig) -> list[MillError]:
    """What keeps this process from asking the servers for good, as far as it can be told before they are needed."""
    check, name = partial(_check_room, config), config.served_name or str(config.model)
    return look_at(config.urls, model=name, api_key_env=config.api_key_env, check=check)


def describe(config: DifficultyConfig) -> dict[str, Any]:
    """What decides its scores, for the manifest; asks no server. Where the servers are doesn't."""
    assert config.model is not None  # the config's validator has seen to it
    return {
        "scorer": EndpointScorer.name,
        "measure": "surprisal",
        "model": config.model,
        "revision": model_fingerprint(resolve_model(config.model), config.revision),
        "served_name": config.served_name or config.model,
        "context_tokens": config.context_tokens,
        "min_context": config.min_context,
        "top_logprobs": config.top_logprobs,
    }


class EndpointScorer:
    """Scores texts with a served model. Threads may share one.

    The servers report the log probability of each token and of the `top_logprobs` most likely ones, not the whole
    distribution. `entropy_nats` is therefore a lower bound: the entropy with all tokens that weren't reported taken for
    one. With `top_logprobs` 0 it is that of "this token or another", at most ln 2.

    Attributes:
        tokenizer: the model's own, lossless.
    """

    name = "endpoint"
    rehearsal = False

    def __init__(self, config: DifficultyConfig) -> None:
        """Reaches the servers.

        Raises:
            MillError: no server answers, or the model's tokenizer isn't there.
            RequestError: the key is wrong, or the servers have another model, or one that reads too little at once.
        """
        assert config.model is not None  # the config's validator has seen to it
        self._config = config
        self._served_name = config.served_name or config.model
        self.tokenizer = load_tokenizer(config.model, config.revision)
        self._start_id = self.tokenizer.start_of_text_id
        self._longest_tokens: int | None = None  # until a server says what it takes
        self._slots = asyncio.Semaphore(config.max_in_flight or IN_FLIGHT_PER_URL * len(config.urls))
        self._pool = EndpointPool(
            config.urls,
            model=self._served_name,
            api_key_env=config.api_key_env,
            timeout_s=config.timeout_s,
            max_wait_s=config.max_wait_s,
            check=self._look_at,
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint-scorer", daemon=True)
        self._thread.start()
        try:
            self._wait_for(self._pool.start())
        except BaseException:
            self.close()
            raise

    def score(self, texts: Sequence[str]) -> list[TokenScores]:
        """Scores of each text. Characters that the model's vocabulary lacks are read as spaces.

        Raises:
            UnencodableText: a text has lone surrogates, or the tokenizer alters it.
            MillError: the servers fail, refuse, or report no prompt logprobs.
        """
        documents = [self.tokenizer.encode_for_scoring(text) for text in texts]
        nats = [np.empty((2, len(ids)), np.float32) for ids in documents]
        places = [
            (number, window)
            for number, ids in enumerate(documents)
            for window in cut_windows(len(ids), self._config.context_tokens, self._config.min_context)
        ]
        scored = self._wait_for(self._score_windows([(documents[number], window) for number, window in places]))
        for (number, window), found in zip(places, scored, strict=True):
            nats[number][:, window.score_from : window.end] = found
        return [
            TokenScores(self.tokenizer.byte_ends(ids), surprisal, entropy)
            for ids, (surprisal, entropy) in zip(documents, nats, strict=True)
        ]

    def nats_after(
        self, prefixes: Sequence[str], text: str, skipped: int, *, prefix_tokens: int, context_tokens: int | None = None
    ) -> NatsAfter:
        """See `Scorer.nats_after`; each prefix with the text is one request."""
        window = window_of(context_tokens, self._longest_tokens, self._config.model)
        window = window or self._config.context_tokens  # a server that doesn't say what it takes takes that
        rows = rows_after(self.tokenizer, prefixes, text, skipped, prefix_tokens=prefix_tokens, context_tokens=window)
        read = [ids for ids in rows.ids if ids is not None]
        if not rows.given:
            return rows.gathered([])
        windows = [(ids, Window(0, len(ids) - rows.given, len(ids))) for ids in read]
        return rows.gathered([surprisal for surprisal, _ in self._wait_for(self._score_windows(windows))])

    def close(self) -> None:
        """End the connections. Safe to call twice."""
        if self._loop.is_closed():
            return
        self._wait_for(self._pool.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait_for(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    # --- on the loop --------------------------------------------------------------------------------------------------

    async def _score_windows(self, windows: Sequence[tuple[np.ndarray, Window]]) -> list[np.ndarray]:
        """Surprisal and entropy of the scored tokens of each window of some ids, (2, scored tokens) float32."""
        tasks = [asyncio.create_task(self._score_window(ids, window)) for ids, window in windows]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _score_window(self, ids: np.ndarray, window: Window) -> np.ndarray:
        """(2, scored tokens) float32."""
        prompt = [self._start_id, *ids[window.start : window.end].tolist()]
        answer = await self._ask(prompt)
        reported = answer.choices[0].prompt_logprobs if answer.choices else None
        if reported is None or len(reported) != len(prompt):
            raise MillError(
                f"the servers of {self._served_name!r} report no logprobs of the prompt; scorer endpoint needs vLLM "
                "(`prompt_logprobs`), or use scorer causal_lm"
            )
        at = 1 + window.score_from - window.start
        pairs = zip(prompt[at:], reported[at:], strict=True)
        return np.array([_nats(token, logprobs or {}) for token, logprobs in pairs], np.float32).reshape(-1, 2).T

    async def _ask(self, prompt: list[int]) -> _Completion:
        body = {
            "model": self._served_name,
            "prompt": prompt,
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": self._config.top_logprobs,
            # With a cached prefix, what vLLM reports depends on the requests before (vllm-project/vllm#42019).
            "cache_salt": uuid.uuid4().hex,
        }
        failures = 0
        max_bytes = _MOST_BYTES + _MOST_BYTES_PER_LOGPROB * len(prompt) * (1 + self._config.top_logprobs)
        while True:
            try:
                async with self._slots:
                    return (await self._pool.post(COMPLETIONS, body, _Completion, max_bytes=max_bytes))[0]
            except EndpointRefused as error:
                if error.unknown_fields:
                    needs = f"doesn't know {', '.join(error.unknown_fields)}: scorer endpoint needs vLLM"
                    raise RequestError(f"{error} (the server {needs}, or use scorer causal_lm)") from error
                raise MillError(f"a window of {len(prompt)} tokens can't be scored: {error}") from error
            except EndpointFull as error:
                pause_s = error.retry_after_s or BACKOFF_S
            except EndpointFailed as error:
                failures += 1
                if failures == MAX_ATTEMPTS:
                    raise MillError(f"a window can't be scored, {failures} tries failed, the last: {error}") from error
                pause_s = BACKOFF_S * 2.0 ** (failures - 1)
            await asyncio.sleep(pause_s)

    def _look_at(self, url: str, served: Served) -> None:
        _check_room(self._config, url, served)
        if served.max_model_len is not None:
            room = served.max_model_len - _EXTRA_TOKENS
            self._longest_tokens = min(room, self._longest_tokens or room)


def _check_room(config: DifficultyConfig, url: str, served: Served) -> None:
    room = None if served.max_model_len is None else served.max_model_len - _EXTRA_TOKENS
    if room is not None and config.context_tokens > room:
        raise RequestError(
            f"difficulty.context_tokens: {config.context_tokens}: {url} takes {served.max_model_len} tokens at once, "
            f"which leaves room for windows of {room}"
        )


def _nats(token: int, reported: dict[int, _TokenLogprob]) -> tuple[float, float]:
    """Surprisal of a token and a lower bound of the entropy of the prediction, from the logprobs that are known."""
    if token not in reported:
        raise MillError(f"a server reported no logprob of token {token} of the prompt")
    logprobs = [min(entry.logprob, 0.0) for entry in reported.values()]
    rest = max(0.0, 1.0 - math.fsum(map(math.exp, logprobs)))
    entropy = -math.fsum(math.exp(logprob) * logprob for logprob in logprobs)
    if rest > 0:
        entropy -= rest * math.log(rest)
    return max(-reported[token].logprob, 0.0), entropy
