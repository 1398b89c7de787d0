"""What tiers with `context: contraction` ask of a document before its segments are asked about. Pure.

The contractions of a document are a recipe over its segments (`augment.recipes.contracting`), made once for all tiers
and segments that need one, up to the last of these.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from augment.recipes.protocol import RecipeRequest
from augment.requests.planner import TracePlanner
from augment.requests.tiers import CONTRACTION, SegmentChoices, TierRequest
from sharding.hashing import fingerprint
from sharding.models.tokenizer import TextTokenizer
from sharding.records.types import Request, ScoredSegment

CONTRACTION_TIER = "contraction of a document"
"""The tier of such calls in the ledger; no tier of a config is about a document."""


def contraction_planner(planner: TracePlanner) -> TracePlanner:
    """The planner of the calls that contract documents, for a planner that has tiers with contractions."""
    asked = planner.contraction
    assert asked is not None
    return planner.with_tiers(
        TierRequest(
            tier=CONTRACTION_TIER,
            model=asked.model,
            prompt=asked.prompt,
            samples=1,
            max_tokens=asked.max_tokens,
            min_tokens=0,
            expected_tokens=float(asked.max_tokens),
        )
    )


def contractions_wanted(planner: TracePlanner, segments: Sequence[ScoredSegment], choices: SegmentChoices) -> int:
    """How many segments of a document have to be contracted, from the first: all before the last that shows one."""
    return max((index for index in contracted_segments(planner, segments, choices)), default=0)


def contracted_segments(planner: TracePlanner, segments: Sequence[ScoredSegment], choices: SegmentChoices) -> list[int]:
    """The places of the segments whose prompts show a contraction; the first segment has nothing before it."""
    found = []
    for place, (segment, chosen) in enumerate(zip(segments, choices.tiers(segments), strict=True)):
        tier = planner.tiers[chosen]
        shows = tier is not None and CONTRACTION in tier.context and choices.shown_tokens(segment, tier.tier) > 0
        if place and shows:
            found.append(place)
    return found


def contraction_request(planner: TracePlanner, segments: Sequence[ScoredSegment]) -> Request:
    """What stands for all calls of a document's contractions; their rows have its key.

    It is of the document, by id and tokens: copies under other ids are contracted each for itself, so that one can be
    taken down without the other.

    Args:
        segments: all of the document.
    """
    asked = planner.contraction
    assert asked is not None
    doc_id = segments[0].doc_id
    ids = [np.ascontiguousarray(segment.input_ids, "<u4").tobytes() for segment in segments]
    lengths = np.array([len(each) for each in ids], "<u8").tobytes()
    return Request(
        doc_id=doc_id,
        segment_index=0,
        tier=CONTRACTION_TIER,
        model=asked.model,
        prompt=asked.prompt,
        request_key=fingerprint(["contraction\0", doc_id, "\0", lengths, *ids]),
        samples=1,
        max_tokens=asked.max_tokens,
        expected_tokens=float(asked.max_tokens * len(segments)),
        prompt_tokens=0,
        prompt_token_ids=np.empty(0, np.uint32),
        shown_tokens=0,
    )


def contraction_recipe(planner: TracePlanner, calls: int) -> RecipeRequest:
    """What is asked of the recipe that contracts so many segments."""
    asked = planner.contraction
    assert asked is not None
    return RecipeRequest(
        name="contraction", prompt=asked.prompt, model=asked.model, max_tokens=max(1, calls) * asked.max_tokens
    )


def as_long_as_contractions(
    planner: TracePlanner, segments: Sequence[ScoredSegment], tokenizer: TextTokenizer
) -> list[str]:
    """Texts about as long as the contractions of a document, to tell the length of prompts before there are any."""
    if planner.contraction is None:
        return []
    found: list[str] = []
    before = np.empty(0, tokenizer.dtype)
    for segment in segments[:-1]:
        before = np.concatenate([before, segment.input_ids])[-planner.contraction.max_tokens :]
        found.append(tokenizer.decode_bytes(before).decode(errors="ignore"))
    return found
