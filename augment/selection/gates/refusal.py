"""The gate against refusals: "I'm sorry, but I can't help with that" is no thought about a document.

A refusal stands at the beginning of a sentence, in the first person and outside quotation marks, near the beginning of
the trace, or anywhere in a short one. So a trace that thinks about somebody's refusal passes. A person who says sorry
in a story does not count either while the segment has the same words.

The sentences are in `augment.selection.gates.refused_sentences`. Measured by `python -m benchmarks.gates`.
"""

from __future__ import annotations

from pydantic import Field
from pydantic.dataclasses import dataclass

from augment.selection.gates.gate import Gate, Subject
from augment.selection.gates.quotations import plain, without_quotations
from augment.selection.gates.refused_sentences import REFUSED
from sharding.config import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Refusal(Gate):
    """Refusals to think: traces that begin with one or consist of one."""

    within_characters: int = Field(
        default=300, gt=0, description="How far into the trace a refusal begins to be one, quotations left out."
    )
    whole_characters: int = Field(
        default=600, ge=0, description="In a trace no longer than this it may stand anywhere, quotations left out."
    )

    def objects(self, subject: Subject) -> bool:
        said = plain(without_quotations(plain(subject.trace.text)))
        end = len(said) if len(said) <= self.whole_characters else self.within_characters
        # A match that begins within the limit may end after it.
        found = {match[1] for match in REFUSED.finditer(said[: end + 200]) if match.start(1) < end}
        source = plain(subject.source_text) if found else ""
        return any(refusal not in source for refusal in found)
