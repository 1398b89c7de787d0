"""What a prompt shows beside its segment, put together from what the tier asks for. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from augment.requests.tiers import CONTRACTION, FULL, RETRIEVED, TierRequest
from sharding.errors import MillError
from sharding.records.types import ScoredSegment


class NoContext(MillError):
    """What the prompt of a segment is to show could not be had: for the quarantine.

    Attributes:
        reason: a short stable name.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class FindsPassages(Protocol):
    """What finds passages for one document."""

    def find(self, spans: Sequence[str], number: int) -> Sequence[str]:
        """The texts of the passages that say most about hard spans, the best first."""


HEAD_OF_PASSAGES = "Found elsewhere, on what is difficult in the passage:"
"""Stands before them in a prompt: they are no part of the document."""


@dataclass(frozen=True, kw_only=True)
class Contexts:
    """What there is to show of one document beside its segments.

    Attributes:
        contractions: of the document up to and with each segment, from the first.
        passages: what finds passages for it; None where there is no index.
    """

    contractions: Sequence[str] = ()
    passages: FindsPassages | None = None

    def of(self, tier: TierRequest, segment: ScoredSegment, before: str, focus: Sequence[str]) -> str:
        """The context of a segment's prompt.

        Args:
            before: what precedes it in the document, or the end of that.
            focus: its hardest spans, the hardest first.

        Raises:
            NoContext: it could not be had.
        """
        shown = []
        if FULL in tier.context:
            shown.append(before)
        if CONTRACTION in tier.context and segment.segment_index:
            shown.append(self._contraction(segment))
        if RETRIEVED in tier.context and focus:
            if self.passages is None:
                raise ValueError(f"tier {tier.tier} shows passages, and there is no index to find them in")
            if found := self.passages.find(focus, tier.passages):
                # Last, as it is the front of a context that gives way where room is short.
                shown += [HEAD_OF_PASSAGES, *(f"[{number}] {text}" for number, text in enumerate(found, 1))]
        return "\n\n".join(part for part in shown if part.strip())

    def _contraction(self, segment: ScoredSegment) -> str:
        if segment.segment_index > len(self.contractions):
            raise NoContext(
                "no_contraction", "what precedes it in the document could not be contracted: a call for that failed"
            )
        return self.contractions[segment.segment_index - 1]
