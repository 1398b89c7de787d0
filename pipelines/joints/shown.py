"""What a generator is shown of a segment: layout and value say where it ends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from augment.selection.values import needs_continuation
from difficulty.surprisal import Measure, hard_spans, token_difficulty_nats
from pipelines.config import MillConfig
from sharding.models.tokenizer import load_tokenizer
from sharding.records.types import ScoredSegment

MIN_SHOWN_TOKENS = 16
"""A thought within a segment has at least so much of the segment before it, where the segment is long enough."""


MIN_HELD_BACK_TOKENS = 8
"""A shorter tail would tell nothing."""


@dataclass(frozen=True)
class Holdback:
    """How many of a segment's tokens, from its start, the prompt shows; the others are held back from the generator.

    Mostly all are shown. A thought that is to stand within the segment has seen only what stands before it; and the
    last segment of a document keeps back its tail, where a trace is valued by what it does for text that follows.

    Attributes:
        tokenizer: name of the training tokenizer.
        threshold_nats: difficulty above which a token is hard.
        measure: what a token's difficulty is.
        at_hard_span: thoughts stand before the segment's hardest span.
        hold_back_tokens: what the last segment of a document keeps back; at most a third of it.
        valued_tiers: the tiers for which it does.
    """

    tokenizer: str
    threshold_nats: float
    at_hard_span: bool
    hold_back_tokens: int
    valued_tiers: tuple[str, ...]
    measure: Measure = "surprisal"

    def token_nats(self, segment: ScoredSegment) -> np.ndarray:
        """(num_tokens,) nats: how hard each token of a segment is."""
        return token_difficulty_nats(segment.surprisal_nats, segment.entropy_nats, segment.memory_nats, self.measure)

    def shown_tokens(self, segment: ScoredSegment, tier: str) -> int:
        """For a segment of this tier."""
        num_tokens = len(segment.input_ids)
        if self.at_hard_span:
            return self._before_hardest_span(segment)
        if tier in self.valued_tiers and segment.segment_index == segment.num_segments - 1:
            held_back = min(self.hold_back_tokens, num_tokens // 3)
            if held_back >= MIN_HELD_BACK_TOKENS:
                return self._whole_characters(segment, num_tokens - held_back)
        return num_tokens

    def _before_hardest_span(self, segment: ScoredSegment) -> int:
        tokenizer = load_tokenizer(self.tokenizer)
        nats = self.token_nats(segment).astype(np.float64)
        least = MIN_SHOWN_TOKENS if len(nats) > MIN_SHOWN_TOKENS else 1
        if len(nats) <= least:
            return 0
        text = tokenizer.decode(segment.input_ids)
        spans = hard_spans(text, tokenizer.byte_ends(segment.input_ids), nats, threshold_nats=self.threshold_nats)
        late = [span for span in spans if span.token_start >= least]
        if late:
            place = max(late, key=lambda span: (span.nats, -span.token_start)).token_start
        else:
            place = least + int(nats[least:].argmax())
        return self._whole_characters(segment, place)

    def _whole_characters(self, segment: ScoredSegment, num_tokens: int) -> int:
        """At most so many tokens, fewer where a character would be torn."""
        tokenizer = load_tokenizer(self.tokenizer)
        text_bytes = tokenizer.decode_bytes(segment.input_ids)
        byte_ends = tokenizer.byte_ends(segment.input_ids)
        while num_tokens and text_bytes[byte_ends[num_tokens - 1]] & 0xC0 == 0x80:
            num_tokens -= 1
        return num_tokens


def holdback_of(config: MillConfig) -> Holdback:
    """What the config asks for: see `Holdback`."""
    select = config.select
    values = select.values_traces(config.gain_difficulty.scorer != "none")
    valued = tuple(tier.name for tier in config.budget.tiers if tier.model is not None and values)
    return Holdback(
        tokenizer=config.tokenizer,
        threshold_nats=config.difficulty.threshold_nats,
        at_hard_span=config.layout == "at_hard_span",
        hold_back_tokens=select.gain.hold_back_tokens if needs_continuation(select.value_name) else 0,
        valued_tiers=valued,
        measure=config.difficulty.token_measure,
    )
