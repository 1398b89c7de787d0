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

from augment.marks import first_block, split_thinking
from sharding.records.types import LedgerRow

Closed = Literal["natural", "forced", "cut"]

PARTIAL = "partial"
"""Finish reason of a generation that was interrupted, and how its row in the ledger is closed. No trace comes of it."""

_CLOSERS = "\"'”’)]*`_"
_ENDS = (".", "!", "?", "。", "！", "？", "…")

_TAIL_CHARACTERS = 200
"""The end of a text is told from its last line, as far as it is no longer."""

_GOES_ON = re.compile(
    r"(?:"
    r"(?:^[\s>*#-]*|[.!?;] |: (?=1))\(?\d{1,3}[.)]"  # the number of a list's next item
    r"|^[\s>*#-]*\(?(?:[A-Za-z]|[ivx]{1,5})[.)]"
    r"|\b(?:e\.\s?g|i\.\s?e|cf|vs|viz|resp|approx|ca|Fig|Eqs?|Secs?|Dr|Mrs?|Prof|z\.\s?B|d\.\s?h|bzw|vgl|Nr)\."
    r"|(?<!\+)[=+<(\[{,:;&^\\≤≥≈≠→×·∈]"  # an operator, a bracket or a sign that something follows
    r")\Z"
)
_FENCE = re.compile(r"^[ \t]{0,12}(?:```|~~~)", re.MULTILINE)


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
        text=split_thinking(row.text)[0],
        closed=cast(Closed, row.closed),
        finish_reason=row.finish_reason,
        thought_tokens=row.thought_tokens,
    )


def answer_of(text: str) -> str:
    """What a generation says after its thinking; where it says nothing there, or thought nothing, all it says."""
    inside, end = first_block(text)
    return inside if end is None else first_block(text, end)[0] or inside


def ends_sentence(text: str) -> bool:
    """Whether a text ends where a sentence, a paragraph or a code block does; not if something is to follow."""
    stripped = text.rstrip()
    paragraph = bool(stripped) and text.count("\n", len(stripped)) > 1
    return (paragraph or stripped.rstrip(_CLOSERS).endswith(_ENDS) or stripped.endswith("```")) and not goes_on(text)


def goes_on(text: str) -> bool:
    """Whether a text ends where more must follow: "1. ", "e.g. ", "f(x) =", or within code or a formula."""
    tail = text.rstrip()[-_TAIL_CHARACTERS:]
    line = tail[tail.rfind("\n") + 1 :]
    return bool(
        _GOES_ON.search(line)
        or len(_FENCE.findall(text)) % 2
        or text.count("$$") % 2
        or text.count("\\[") > text.count("\\]")
        or text.count("\\begin{") > text.count("\\end{")
    )
