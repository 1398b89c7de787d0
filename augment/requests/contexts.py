"""What a prompt shows beside its segment, put together from what the tier asks for. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from augment.requests.tiers import CONTRACTION, FULL, TierRequest
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


@dataclass(frozen=True, kw_only=True)
class Contexts:
    """What there is to show of one document beside its segments.

    Attributes:
        contractions: of the document up to and with each segment, from the first.
    """

    contractions: Sequence[str] = ()

    def of(self, tier: TierRequest, segment: ScoredSegment, before: str) -> str:
        """The context of a segment's prompt.

        Args:
            before: what precedes it in the document, or the end of that.

        Raises:
            NoContext: it could not be had.
        """
        shown = []
        if FULL in tier.context:
            shown.append(before)
        if CONTRACTION in tier.context and segment.segment_index:
            shown.append(self._contraction(segment))
        return "\n\n".join(part for part in shown if part.strip())

    def _contraction(self, segment: ScoredSegment) -> str:
        if segment.segment_index > len(self.contractions):
            raise NoContext(
                "no_contraction", "what precedes it in the document could not be contracted: a call for that failed"
            )
        return self.contractions[segment.segment_index - 1]
