"""What readers rely on in the manifest of each stage: the types of its config, counts and facts, as far as they go.

`sharding.storage.manifest` holds every manifest against them, since anyone may have written it. What is not here is
looked at by nobody but the stage that wrote it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from sharding.storage.json_files import Number

Length = Annotated[int, msgspec.Meta(ge=1, le=(1 << 31) - 1)]
"""Of a row, or of a vocabulary: what Arrow and every trainer count in 32 bits."""

Key = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]
"""Of a bin, or how much is in it: sums of some thousand fit into 64 bits."""


class _Model(msgspec.Struct):
    name: str
    revision: str
    engine: str


class _Range(msgspec.Struct):
    value: Number
    low: Number
    high: Number


class _Tier(msgspec.Struct):
    name: str
    segments: Number
    generations: Number
    planned_tokens: Number
    planned_gain_nats: _Range | None = None


class _TierConfig(msgspec.Struct):
    name: str
    model: str | None = None
    prompt: str | None = None
    max_tokens: Number | None = None


class _Budget(msgspec.Struct):
    tiers: list[_TierConfig]
    policy: str = ""


class _Forecast(msgspec.Struct):
    thought_tokens: _Range


class _Mean(msgspec.Struct):
    mean: Number
    interval95: tuple[Number, Number] | None
    segments: Number
    documents: Number


class _Gains(msgspec.Struct):
    heldout_first: _Mean
    heldout: _Mean | None = None
    heldout_choice: _Mean | None = None
    null_first: _Mean | None = None
    null: _Mean | None = None
    gain: _Mean | None = None
    control: _Mean | None = None
    hard_gain: _Mean | None = None


class _Lengths(msgspec.Struct):
    candidates: Number
    mean_thought_tokens: Number
    nats_per_1000_thought_tokens: Number | None


class _Account(msgspec.Struct):
    tier: str
    model: str
    prompt: str
    candidates: Number
    kept: Number
    rejected: Number
    thought_tokens: Number
    reasons: dict[str, Number]
    objections: dict[str, Number]
    kept_thought_tokens: Number = 0
    gains: _Gains | None = None
    lengths: dict[str, _Lengths] = {}


class _Benchmarks(msgspec.Struct):
    action: str
    benchmarks: dict[str, dict[str, Number]]


class _Bins(msgspec.Struct):
    bin_steps: list[Key]
    counts: list[Key]
    shift: Annotated[int, msgspec.Meta(ge=0, le=62)]

    def __post_init__(self) -> None:
        if len(self.bin_steps) != len(self.counts):
            raise ValueError(f"{len(self.bin_steps)} bin_steps, but {len(self.counts)} counts")


class _Histogram(msgspec.Struct):
    by_difficulty: _Bins
    by_hash: _Bins
    quantiles_nats: dict[str, Number] = {}


class _Difficulty(msgspec.Struct):
    threshold_nats: Number
    measure: Literal["surprisal", "excess", "beyond_entropy"] | None = None
    reference_model: str | None = None


class _Card(msgspec.Struct):
    name: str


class _Pack(msgspec.Struct):
    sequence_length: Length
    loss_mask: Literal["all", "source_only", "thoughts_only", "no_delimiters"] = "all"
    surprisal: bool = False


class _NearCopies(msgspec.Struct):
    similarity: Number


class _ScoreConfig(msgspec.Struct):
    tokenizer: str
    difficulty: _Difficulty
    near_copies: _NearCopies | None = None


class _BarrenFile(msgspec.Struct):
    file: str
    why: str


class _SourceTally(msgspec.Struct):
    shown: list[_BarrenFile]
    barren: Number


class _ScoreFacts(msgspec.Struct):
    histogram: _Histogram
    vocab_size: Length
    sources: list[_SourceTally] = []


class _ScoreCounts(msgspec.Struct):
    documents: Number
    documents_in: Number
    segments: Number
    source_tokens: Number


class _AugmentConfig(msgspec.Struct):
    budget: _Budget
    sampling: dict[str, Any]
    models: dict[str, dict[str, Any]] = {}


class _AugmentFacts(msgspec.Struct):
    tiers: list[_Tier]
    models: dict[str, _Model]
    warnings: list[str]
    prompts: dict[str, str]
    planned_tokens: Number
    target_spend: Number
    unit: Literal["tokens", "dollars", "gpu_hours"]
    cut_points_nats: list[Number] = []
    planned_gain_nats: _Range | None = None
    marginal_gain_nats: Number | None = None
    forecast: _Forecast | None = None


class _AugmentCounts(msgspec.Struct):
    requests: Number
    generations: Number
    thought_tokens: Number


class _SelectConfig(msgspec.Struct):
    select: dict[str, Any]


class _Frequent(msgspec.Struct):
    text: str
    share: Number


class _Texts(msgspec.Struct):
    distinct: Number
    top: list[_Frequent]


class _NearCopiesOfThoughts(msgspec.Struct):
    share: Number
    per_thought: Number


class _TierDiversity(msgspec.Struct):
    sampled: Number
    opening: str
    opening_share: Number
    shape: str
    shape_share: Number
    near_copy_share: Number


class _Diversity(msgspec.Struct):
    thoughts: Number
    sampled: Number
    openings: _Texts
    shapes: _Texts
    near_copies: _NearCopiesOfThoughts
    tiers: dict[str, _TierDiversity]


class _SelectFacts(msgspec.Struct):
    value: str = "none"
    account: list[_Account] = []
    diversity: _Diversity | None = None
    decontamination: _Benchmarks | None = None


class _SelectCounts(msgspec.Struct):
    candidates: Number
    kept: Number
    rejected: Number
    thought_tokens: Number


class _PackConfig(msgspec.Struct):
    tokenizer: str
    layout: str
    card: _Card
    pack: _Pack


class _Removal(msgspec.Struct):
    at: str
    documents: Number


class _First(msgspec.Struct):
    counts: dict[str, Number]
    rehearsal: bool


class _Delivery(msgspec.Struct):
    number: Annotated[int, msgspec.Meta(ge=1, le=99_999)]
    digest: str
    told: dict[str, Number]


class _Delivered(msgspec.Struct):
    first: _First
    deliveries: list[_Delivery]


class _PackFacts(msgspec.Struct):
    vocab_size: Length
    tokenizer_fingerprint: str
    document_end_ids: list[Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]]
    document_start_ids: list[Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]] = []
    tokenize: str = ""
    warnings: list[str] = []
    versions: dict[str, str] = {}
    removals: list[_Removal] = []
    delivered: _Delivered | None = None


class _PackCounts(msgspec.Struct):
    rows: Number


KNOWN: dict[str, dict[str, Any]] = {
    "score": {"config": _ScoreConfig, "facts": _ScoreFacts, "counts": _ScoreCounts},
    "augment": {"config": _AugmentConfig, "facts": _AugmentFacts, "counts": _AugmentCounts},
    "select": {"config": _SelectConfig, "facts": _SelectFacts, "counts": _SelectCounts},
    "pack": {"config": _PackConfig, "facts": _PackFacts, "counts": _PackCounts},
}
"""Stage → part of its manifest → what is in it at least."""

FAMILIES_OF = {
    "score": ("segments", "quarantine", "near_copies"),
    "augment": ("requests", "quarantine"),
    "select": ("kept", "rejected", "contaminated"),
    "pack": ("shards", "epoch_shards", "documents"),
}
"""Stage → the families of its files."""
