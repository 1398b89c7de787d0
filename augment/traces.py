"""What a generation says: thinking markers stripped, and whether it came to an end. Pure, under everything else.

Pure functions between the engine and the ledger. A generation that runs into its cap is cut mid-sentence, and a corpus
of cut traces teaches to stop mid-sentence. So a share of the cap is kept back: the first call stops short of the cap,
and if it was still going, a second one carries on from there and ends with the sentence (budget forcing, after s1,
arXiv 2501.19393; there it ends the thinking at once, here the sentence is finished first).
"""

from __future__ import annotations

import re
from dataclasses import dataclass as plain_dataclass
from typing import Literal, cast

from sharding.records.types import LedgerRow

Closed = Literal["natural", "forced", "cut"]

THINK_MARKERS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
"""Begin and end of thinking in the texts of known models."""

_SENTENCE_END = re.compile(r"(?:[.!?。！？…][\"'”’)\]*`_]*|\n\n|```)\s*\Z")
_BEGIN = re.compile("|".join(re.escape(begin) for begin, _ in THINK_MARKERS))
_END = re.compile("|".join(re.escape(end) for _, end in THINK_MARKERS))


@plain_dataclass(frozen=True, kw_only=True)
class Trace:
    """A generation as it may enter training: what gates and values judge.

    Attributes:
        text: without thinking markers and surrounding white space; may be empty.
        closed: "natural" (the model ended it), "forced" (a closing call did) or "cut" (neither).
        finish_reason: as the engine said.
        thought_tokens: tokens that were generated, in the generator's tokenizer.
    """

    text: str
    closed: Closed
    finish_reason: str
    thought_tokens: int


def parse_trace(row: LedgerRow) -> Trace:
    """The trace of a ledger row.

    With a thinking block, closed or not, opened by the model or by the prompt already, the trace is what is inside it;
    where that is empty, or there is no block, it is what the model wrote as its answer.
    """
    return Trace(
        text=_thinking(row.text)[0],
        closed=cast(Closed, row.closed),
        finish_reason=row.finish_reason,
        thought_tokens=row.thought_tokens,
    )


def _thinking(text: str) -> tuple[str, bool]:
    """The trace in a text, and whether it is a thinking block whose end is in the text too."""
    rest = text.strip()
    while begin := _BEGIN.match(rest):
        rest = rest[begin.end() :].lstrip()
    end = _END.search(rest)
    if end is None:
        return rest, False
    inside = rest[: end.start()].rstrip()
    return (inside, True) if inside else _thinking(rest[end.end() :])


def ends_sentence(text: str) -> bool:
    """Whether a text ends where a sentence, a paragraph or a code block does."""
    return _SENTENCE_END.search(text) is not None
