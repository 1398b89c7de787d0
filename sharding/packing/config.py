"""The `pack` section of the config, and the layouts that `layout` can name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from sharding.config import STRICT
from sharding.errors import MillError
from sharding.packing.best_fit import WINDOW_ITEMS
from sharding.shards.rows import LossMask
from sharding.storage.manifest import Manifest

MAX_WEIGHT = 100.0
"""More copies than this are taken for a mistake: after 16 or so repetitions are worth nothing (arXiv 2305.16264)."""

MAX_EPOCHS = 100
"""Each has shards of its own: more are taken for a mistake. Megadocs (arXiv 2603.18534) goes up to 32."""

LAYOUTS = {
    "after_document": "sharding.packing.layouts.after_document",
    "after_segment": "sharding.packing.layouts.after_segment",
    "before_segment": "sharding.packing.layouts.before_segment",
    "at_hard_span": "sharding.packing.layouts.at_hard_span",
}
"""The layouts by the names they have in a config, and where they are; see `sharding.packing.layouts`."""

if TYPE_CHECKING:
    Layout = str
else:
    Layout = Literal[tuple(LAYOUTS)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PackConfig:
    """`pack:` in the config: the form of the training sequences, and how they are dealt out to files."""

    sequence_length: int = Field(ge=16, description="Tokens of one training sequence.")
    num_shards: int = Field(default=1, ge=1, description="Files of the train split; a multiple of the ranks is best.")
    seed: int = Field(default=0, ge=0, lt=1 << 63, description="Key of the global order and of the plain documents.")
    validation_fraction: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="Share of the documents set apart for validation, by hash of the text."
    )
    raw_fraction: float = Field(
        default=0.0, ge=0.0, le=1.0, description="Share of the documents kept plain, without their thoughts."
    )
    source_weights: dict[str, Annotated[float, Field(ge=0.0, le=MAX_WEIGHT)]] = Field(
        default_factory=dict,
        description="How often the documents of a source are in the corpus, by the source's name: 0.5 keeps half of "
        "them, 2 has each twice; 1 for sources not named.",
    )
    max_rows: dict[Literal["train", "validation"], Annotated[int, Field(ge=0)]] = Field(
        default_factory=dict, description="Cut a split to so many sequences, a fair sample; all for splits not named."
    )
    trace_per_epoch: int = Field(
        default=1,
        ge=1,
        le=MAX_EPOCHS,
        description="So many epochs with other traces: of n that passed all gates a segment shows another one in each, "
        "round and round; shards of every epoch are written, of train alone. 1: all epochs show the kept one.",
    )
    loss_mask: LossMask = Field(
        default="all",
        description="Tokens that count as ones to be predicted: all, source_only, thoughts_only, or no_delimiters.",
    )
    surprisal: bool = Field(
        default=False,
        description="Whether shards have the surprisal of every source token, for trainers that weight tokens by it.",
    )
    window_items: int = Field(
        default=WINDOW_ITEMS, ge=1, description="Items packed together at least; more means less padding and memory."
    )
    zstd_level: int = Field(default=6, ge=1, le=22, description="Compression level of the shards.")
    tokenize: Literal["lossless", "as_trainer"] = Field(
        default="lossless",
        description="lossless: tokens spell the documents byte for byte. as_trainer: they are those that the trainer's "
        "AutoTokenizer gives, with its normalizer and prefix space.",
    )
    thought_open: str = Field(default="\n\n<think>\n", description="Text before every thought; may be empty.")
    thought_close: str = Field(default="\n</think>", description="Text after every thought; may be empty.")
    document_start: str = Field(
        default="", description='Token before every document, such as "<s>" where a trainer expects a BOS; or nothing.'
    )
    document_end: str | None = Field(
        default=None,
        description="Token after every document, one of the vocabulary; null: the tokenizer's end-of-text token.",
    )

    @model_validator(mode="after")
    def _epochs_have_all_rows(self) -> PackConfig:
        if self.trace_per_epoch > 1 and self.max_rows:
            raise ValueError(
                f"trace_per_epoch: {self.trace_per_epoch} epochs would each lose other documents to max_rows: leave "
                "that out, or have trace_per_epoch: 1"
            )
        return self


def section_of(config: PackConfig) -> dict[str, Any]:
    """The section as manifests have it; keys that change nothing are left out, as before there were such."""
    section: dict[str, Any] = TypeAdapter(PackConfig).dump_python(config, mode="json")
    if config.trace_per_epoch == 1:
        del section["trace_per_epoch"]
    return section


def config_of(packed: Manifest) -> PackConfig:
    """The section that shards were packed with, from their manifest.

    Raises:
        MillError: it is not a section of this version.
    """
    try:
        return TypeAdapter(PackConfig).validate_json(json.dumps(packed.config["pack"]))
    except (KeyError, ValidationError) as error:
        raise MillError(f"the shards were packed by another version of thoughtmill: {error}") from error


def layout_of(packed: Manifest) -> Layout:
    """Where thoughts stand in a corpus, from its pack manifest.

    Raises:
        MillError: this version knows no such layout.
    """
    layout: Layout = packed.config["layout"]
    if layout not in LAYOUTS:
        raise MillError(f"layout: the shards say {layout[:100]!r}, which is not one of {', '.join(LAYOUTS)}")
    return layout
