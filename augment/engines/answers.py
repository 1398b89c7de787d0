"""Answers: what came back from a model, held against what was asked. Between an engine's words and the ledger's rows.

A trace is what its token ids say. The text is spelled from them, with the marks of thinking, which servers leave out
where they are special tokens; the text that came beside them must be the same, else somebody cut, mixed or made up
something, and the request has failed. Without ids the text has to do. A generation that was cut at its cap ends with a
whole character, so that whoever carries on from its ids begins at one: engines that begin within a character give the
whole prompt back (vllm-project/vllm#48853), or U+FFFD.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from augment.engines.protocol import Generation, GenerationFailed, GenerationRequest, RequestRejected
from augment.marks import DIALECTS, split_thinking
from augment.traces import PARTIAL
from sharding.models.tokenizer import TextTokenizer, UnencodableText

_REPLACEMENT = "\ufffd"
_SHOWN_CHARACTERS = 160

_ECHO_CHARACTERS, _ECHO_TOKENS = 24, 8
"""A prompt this long isn't said by chance."""

_CHARACTER_TOKENS = 8
"""More than a character can have: it is 4 bytes, and a token is one at least."""

_SLACK_SHARE, _SLACK_TOKENS = 1.125, 8
"""How many more tokens a text may have than were asked for, where the ids aren't told: models spell some words in more
or fewer tokens than the tokenizer does."""

_ENDED = {
    **dict.fromkeys(("stop", "eos", "eos_token", "stop_token", "stop_sequence", "end_turn", "complete"), "stop"),
    "repetition": "repetition",
}
_BROKEN = re.compile(
    "abort|cancel|error|fail|time.?out|disconnect|interrupt|preempt|evict|kill|shut|crash|overload|insufficient"
    "|unavailable|rate.?limit|filter|safety|sensitive|block|prohibit|refus|reject|den(y|ied)|recitation|tool|function"
    "|incomplete|unfinished|partial|malformed|pause|guardrail|interven"
)
_CAPPED = re.compile("length|max|limit|context|window|budget|truncat|exceed")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came for a request.

    Attributes:
        text: as it came; thinking and answer where they came apart.
        thinking: what came as thinking, apart from the answer; empty where it didn't.
        token_ids: as they came; None: they weren't told.
        finish_reason: as it came, whatever that is.
        paid_tokens: as the server counts them; 0: it doesn't say.
        sum_logprobs, engine_version, model: of the `Generation`.
    """

    text: str
    finish_reason: object
    engine_version: str
    thinking: str = ""
    token_ids: Sequence[int] | None = None
    paid_tokens: int = 0
    sum_logprobs: float | None = None
    model: str | None = None


@dataclass(frozen=True, eq=False)
class _Spelled:
    """Token ids, the UTF-8 that a text has of them, and where each ends in it: (num_tokens,) int64."""

    ids: np.ndarray
    data: bytes
    ends: np.ndarray


class AnswerReader:
    """Makes generations of the answers of one model.

    Attributes:
        special_marks: whether servers leave marks of thinking out of the text, unless they are asked not to.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        known = [marks for marks in DIALECTS if all(tokenizer.token_id(t) is not None for t in marks.tokens[:2])]
        tokens = {token: tokenizer.token_id(token) for marks in known for token in marks.tokens}
        self._marks = {token: number for token, number in tokens.items() if number is not None}
        self._mark = re.compile("(" + "|".join(map(re.escape, self._marks)) + ")") if self._marks else None
        self._control = np.array(sorted(tokenizer.control_ids - set(self._marks.values())), np.uint32)
        self._control_texts = [tokenizer.decode([token]) for token in tokenizer.control_ids]
        self._begins = [re.compile(marks.begin) for marks in known if not marks.prompted]
        self._longest_token_bytes = int(tokenizer.byte_lengths(np.arange(tokenizer.vocab_size)).max())
        self.special_marks = not tokenizer.special_ids.isdisjoint(self._marks.values())

    def read(self, request: GenerationRequest, answer: Answer) -> Generation:
        """The generation that an answer is.

        Raises:
            GenerationFailed: the answer is broken.
            RequestRejected: it is longer than was asked for; it would be the next time, and paid again.
        """
        told = answer.token_ids is not None
        spelled = self._of_ids(answer, request) if told else self._of_text(answer, request)
        num_came, paid_tokens = len(spelled.ids), max(answer.paid_tokens, len(spelled.ids))
        finish = end_of(answer.finish_reason, at_cap=paid_tokens >= request.max_tokens)
        if finish == "length":
            spelled = self._whole_characters(spelled)
        if told:
            self._compare(spelled, request, answer)
        cut = min(_cuts(spelled, request), default=None)
        end, kept = (len(spelled.data), len(spelled.ids)) if cut is None else (cut[1], cut[2])
        return Generation(
            text=spelled.data[:end].decode(errors="replace"),
            token_ids=spelled.ids[:kept],
            sum_logprobs=answer.sum_logprobs if kept == num_came else None,
            finish_reason=finish if cut is None else "stop",
            engine_version=answer.engine_version,
            unseen_tokens=paid_tokens - kept,
            model=answer.model,
        )

    def read_partial(self, request: GenerationRequest, answer: Answer) -> Generation:
        """What there is of a request that was interrupted, as far as another call can carry on from it.

        It ends with a whole character, and where no stop text may have begun: whoever carries on sees the rest of one
        only, and would not stop. What is left off for that was paid for, and is counted as unseen.

        Args:
            answer: with token ids.

        Raises:
            GenerationFailed, RequestRejected: as `read`.
        """
        spelled = self._whole_characters(self._of_ids(answer, request))
        kept = len(spelled.ids)
        while kept and _may_begin_stop(spelled.data[: int(spelled.ends[kept - 1])], request.stop):
            kept -= 1
        return Generation(
            text=spelled.data[: int(spelled.ends[kept - 1]) if kept else 0].decode(errors="replace"),
            token_ids=spelled.ids[:kept],
            sum_logprobs=answer.sum_logprobs if kept == len(answer.token_ids or ()) else None,
            finish_reason=PARTIAL,
            engine_version=answer.engine_version,
            unseen_tokens=len(answer.token_ids or ()) - kept,
        )

    # --- by token ids -------------------------------------------------------------------------------------------------

    def _of_ids(self, answer: Answer, request: GenerationRequest) -> _Spelled:
        told, known = answer.token_ids or (), self._tokenizer.vocab_size
        if odd := next((token for token in told if not 0 <= token < known), None):
            raise GenerationFailed(f"token id {odd} came, and {self._tokenizer.name} has {known:,}, from 0")
        _check_length(max(len(told), answer.paid_tokens), request)
        ids, prompt = np.array(told, np.uint32), request.prompt_token_ids
        if len(prompt) >= _ECHO_TOKENS and np.array_equal(ids[: len(prompt)], prompt):
            raise GenerationFailed("the prompt came back, as the beginning of the answer")
        return self._spell(ids, answer.text)

    def _spell(self, ids: np.ndarray, came: str) -> _Spelled:
        """What ids say. Of control tokens only marks are written, and those that were in the text that came."""
        control = np.unique(ids[np.isin(ids, self._control)])
        unwritten = [token for token in control.tolist() if self._tokenizer.decode([token]) not in came]
        written = ~np.isin(ids, unwritten)
        lengths = np.where(written, self._tokenizer.byte_lengths(ids), 0)
        return _Spelled(ids, self._tokenizer.decode_bytes(ids[written]), np.cumsum(lengths, dtype=np.int64))

    def _whole_characters(self, spelled: _Spelled) -> _Spelled:
        """Without the tokens of a character that was cut."""
        kept = len(spelled.ids)
        while kept:
            last = spelled.ids[max(0, kept - _CHARACTER_TOKENS) : kept]
            if not _ends_within_character(self._tokenizer.decode_bytes(last)):
                break
            kept -= 1
        end = int(spelled.ends[kept - 1]) if kept else 0
        return _Spelled(spelled.ids[:kept], spelled.data[:end], spelled.ends[:kept])

    def _compare(self, spelled: _Spelled, request: GenerationRequest, answer: Answer) -> None:
        """Refuse an answer whose text isn't what its ids say, up to a stop text.

        White space and control tokens don't count: servers write some and not others.
        """
        says = [spelled.data[:end].decode(errors="replace") for _, end, _ in _cuts(spelled, request)]
        says.append(spelled.data.decode(errors="replace"))
        if answer.text in says or self._bare(answer.text) in map(self._bare, says):
            return
        if answer.thinking and self._bare(answer.thinking) == self._bare(split_thinking(says[-1])[0]):
            return
        at = next((i for i, (a, b) in enumerate(zip(answer.text, says[-1], strict=False)) if a != b), 0)
        shown = slice(max(0, at - _SHOWN_CHARACTERS // 4), at + _SHOWN_CHARACTERS)
        raise GenerationFailed(
            f"the text that came isn't what its token ids say: {answer.text[shown]!r} came, "
            f"and they say {says[-1][shown]!r}"
        )

    def _bare(self, text: str) -> str:
        """A text as it can be compared: without white space, control tokens and a character that was cut."""
        for token in self._control_texts:
            text = text.replace(token, "")
        return re.sub(f"{_REPLACEMENT}+", _REPLACEMENT, "".join(text.split())).removesuffix(_REPLACEMENT)

    # --- by the text alone --------------------------------------------------------------------------------------------

    def _of_text(self, answer: Answer, request: GenerationRequest) -> _Spelled:
        text = answer.text.rstrip(_REPLACEMENT)
        most = int(request.max_tokens * _SLACK_SHARE) + _SLACK_TOKENS
        _check_length(answer.paid_tokens, request)
        if len(text) > most * self._longest_token_bytes:
            raise RequestRejected(f"{len(text):,} characters came where {request.max_tokens:,} tokens were asked for")
        if not (request.include_stop or answer.thinking or all(begin.search(text) for begin in self._begins)):
            raise GenerationFailed(
                "neither token ids came nor special tokens, so the thinking can't be told from the answer: the server "
                "has to know return_token_ids or skip_special_tokens"
            )
        said = self._bare(self._tokenizer.decode(request.prompt_token_ids))
        if len(said) >= _ECHO_CHARACTERS and said in self._bare(text):
            raise GenerationFailed("the prompt came back, within the answer")
        try:
            pieces = [
                np.array([self._marks[piece]], np.uint32) if piece in self._marks else self._plain(piece)
                for piece in (self._mark.split(text) if self._mark else [text])
            ]
        except UnencodableText as error:
            raise GenerationFailed(f"text came that has no tokens: {error}") from error
        ids = np.concatenate(pieces).astype(np.uint32)
        if len(ids) > most:
            raise RequestRejected(f"{len(ids):,} tokens came where {request.max_tokens:,} were asked for")
        return _Spelled(ids, text.encode(), self._tokenizer.byte_ends(ids))

    def _plain(self, text: str) -> np.ndarray:
        return self._tokenizer.encode_for_scoring(text)


def end_of(reason: object, *, at_cap: bool) -> str:
    """A finish reason as the ledger has it: "stop", "length" or "repetition".

    Names that aren't known and don't say that something went wrong are taken: those that speak of a limit, and any at
    the cap, mean that, others the end.

    Raises:
        GenerationFailed: the request ended in another way.
    """
    said = reason.get("type") if isinstance(reason, dict) else reason  # as SGLang's own API has it
    if not isinstance(said, str) or not said or _BROKEN.search(said.lower()):
        raise GenerationFailed(f"the server ended the request with {str(said)[:_SHOWN_CHARACTERS]!r}")
    return _ENDED.get(said.lower(), "length" if at_cap or _CAPPED.search(said.lower()) else "stop")


def _check_length(num_tokens: int, request: GenerationRequest) -> None:
    if num_tokens > request.max_tokens:
        raise RequestRejected(f"{num_tokens:,} tokens came or were counted where {request.max_tokens:,} were asked for")


def _cuts(spelled: _Spelled, request: GenerationRequest) -> Iterator[tuple[int, int, int]]:
    """Where each of the stop texts would have ended the generation: its own end, that of the text, tokens until then.

    A server takes few stop texts and stops at the first it knows; of several within a token it chooses in its own way.
    As in a server, one that ends within `min_tokens` is none, and one that ends within a token keeps that token.
    """
    floor = int(spelled.ends[: request.min_tokens][-1]) if request.min_tokens and len(spelled.ends) else 0
    for stop in map(str.encode, request.stop):
        at = spelled.data.find(stop, max(0, floor - len(stop) + 1))
        if at >= 0:
            end = at + len(stop)
            yield end, end if request.include_stop else at, int(np.searchsorted(spelled.ends, end)) + 1


def _may_begin_stop(data: bytes, stops: Sequence[str]) -> bool:
    """Whether bytes end with the beginning of a stop text."""
    return any(data.endswith(stop[:length]) for stop in map(str.encode, stops) for length in range(1, len(stop)))


def _ends_within_character(data: bytes) -> bool:
    """Whether bytes end within a character."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    decoder.decode(data)
    return bool(decoder.getstate()[0])
