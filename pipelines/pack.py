"""Stage 4, pack: segments and kept thoughts → training sequences in Arrow shards, with their card.

segments ─────┐
kept ─────────┼─► by document ─► left out, or laid out as items ─► packed, shuffled, balanced ─► data/*.arrow
contaminated ─┤                      └► counts                   └► where each document is ─► index/*.arrow
near-copies ──┤
(rejected) ───┘ where later epochs show others of them (`pack.trace_per_epoch`)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import apache_beam as beam

from pipelines import card, yaml_config
from pipelines.card import versions
from pipelines.config import DeliveryConfig, MillConfig
from pipelines.delivered import delivered_inputs, shards_before
from pipelines.epochs import epoch_counts
from pipelines.joints import contaminated_urls
from pipelines.outcome import Built, Outcome
from pipelines.secrets import without_secrets
from pipelines.stage import Stage
from pipelines.tombstones import removal_facts
from sharding import storage
from sharding.beam.joins import JoinParts
from sharding.beam.part_join import Parts
from sharding.beam.part_names import part_count
from sharding.errors import RequestError
from sharding.models.tokenizer import load_tokenizer
from sharding.packing.as_trainer import promise
from sharding.packing.config import PackConfig, section_of
from sharding.packing.epochs import least_value, why_one_trace
from sharding.packing.laying_out import delimiter_warnings, encode_delimiters
from sharding.packing.surprisal import check_surprisal
from sharding.packing.transforms import LayOut, PackShards
from sharding.records.families import (
    CONTAMINATED,
    DOCUMENTS,
    EPOCH_ROWS,
    KEPT,
    NEAR_COPIES,
    REJECTED,
    ROWS,
    SEGMENTS,
)
from sharding.shards.rows import split_of
from sharding.storage import manifest
from sharding.storage.manifest import Manifest

SEGMENT_COLUMNS = ("input_ids", "source")
THOUGHT_COLUMNS = ("segment_index", "sample", "key", "input_ids", "shown_tokens")

SECONDS_PER_TOKEN = 0.25e-6
"""Of the source, on one core: docs/benchmarks.md, milling."""


class Pack(Stage):
    """The pack stage of a run."""

    name = "pack"

    def __init__(self, config: MillConfig) -> None:
        self.config = config
        self.tokenizer = load_tokenizer(config.tokenizer)
        earlier = {stage: manifest.require(config.output, stage) for stage in manifest.STAGES[:-1]}
        self.num_parts = part_count(manifest.file_urls(config.output, earlier["score"], SEGMENTS.name))
        delivery = config.delivery
        self.numbered_from = {} if delivery is None else shards_before(manifest.require(delivery.of, "pack"))
        self.work_s = SECONDS_PER_TOKEN * config.pack.trace_per_epoch * earlier["score"].counts["source_tokens"]
        self.least_value = check_epochs(config.pack, earlier["select"].config["select"], delivery)
        check_surprisal(config.pack, self.tokenizer, earlier["score"].config["difficulty"].get("scorer", ""))
        super().__init__(
            config.output,
            sections={
                "tokenizer": config.tokenizer,
                "layout": config.layout,
                "pack": section_of(config.pack),
                "card": config.card,
            },
            inputs={
                "score": manifest.digest(earlier["score"]),
                "select": manifest.digest(earlier["select"]),
                "tokenizer": self.tokenizer.fingerprint,
                **{f"{split} shards before": str(number) for split, number in self.numbered_from.items()},
                **delivered_inputs(config.output),
            },
            earlier=earlier.values(),
        )

    def build(self, root: beam.Pipeline) -> Built:
        config, output = self.config, self.output
        scored, selected = self.earlier["score"], self.earlier["select"]
        parts = parts_of(output, scored, selected, config.pack)
        documents = root | "Documents" >> JoinParts(*parts)
        laid_out = documents | "Lay out" >> LayOut(config.pack, config.layout, config.tokenizer, self.least_value)
        rows_of = PackShards(self.folder, config.pack, self.tokenizer, self.num_parts, self.numbered_from)
        shards = laid_out["items"] | "Shards" >> rows_of
        files = {ROWS: shards["files"], EPOCH_ROWS: shards["later"], DOCUMENTS: shards["index"]}
        return Built(files=files, counts=(laid_out["counts"], shards["counts"]))

    def conclude(self, outcome: Outcome) -> tuple[dict[str, int], dict[str, Any]]:
        shards = outcome.files.get("shards", [])
        counts = outcome.counts | {
            "rows": sum(entry.rows for entry in shards),
            "rows_without_labels": sum(entry.unlabelled_rows for entry in shards),
        }
        for entry in shards:
            for kind, number in entry.tokens.items():
                counts[f"tokens_{kind}"] = counts.get(f"tokens_{kind}", 0) + number
        if later := outcome.files.get(EPOCH_ROWS.name, []):
            # Also the first epoch may have got more rows than its items need.
            counts["rows_train"] = sum(entry.rows for entry in shards if split_of(entry) == "train")
            counts.update(epoch_counts(later))
        delimiters = encode_delimiters(self.config.pack, self.tokenizer)
        return counts, {
            "tokenizer_fingerprint": self.tokenizer.fingerprint,
            "vocab_size": self.tokenizer.vocab_size,
            "document_start_ids": delimiters.document_start.tolist(),
            "document_end_ids": delimiters.document_end.tolist(),
            "tokenize": promise(self.config.pack.tokenize, self.tokenizer),
            "warnings": delimiter_warnings(self.config.pack, self.tokenizer),
            "versions": versions.installed(),
            **removal_facts(self.output),
        }

    def write_beside(self, made: Manifest) -> None:
        """The config and the card."""
        resolved = yaml_config.dump(without_secrets(yaml_config.to_mapping(self.config)))
        storage.write_bytes(self.at.config, resolved.encode())
        card.write(self.output, self.earlier | {"pack": made})


def check_epochs(config: PackConfig, select: Mapping[str, Any], delivery: DeliveryConfig | None) -> float | None:
    """Whether later epochs can show other traces; what these must be worth, see `epochs.least_value`.

    Args:
        select: the `select` section that the traces were selected by.

    Raises:
        RequestError: they can't.
    """
    if config.trace_per_epoch == 1:
        return None
    if (why := why_one_trace(select)) is not None:
        raise RequestError(f"pack.trace_per_epoch: {config.trace_per_epoch} epochs with other traces, and {why}")
    if delivery is not None:
        raise RequestError(
            f"pack.trace_per_epoch: a delivery can't join {config.trace_per_epoch} epochs: mill all documents into one "
            "output, or have trace_per_epoch: 1 in both"
        )
    return least_value(select)


def parts_of(output: str, scored: Manifest, selected: Manifest, config: PackConfig) -> tuple[Parts, ...]:
    """What a corpus is packed from: documents, their kept thoughts, which of them are left out as contaminated, and
    which are near-copies of each other; and where later epochs show others, the rejected ones.

    Args:
        config: the `pack` section.
    """
    columns = (*SEGMENT_COLUMNS, *(["surprisal_nats"] if config.surprisal else []))
    rejected = Parts.of(output, selected, REJECTED, (*THOUGHT_COLUMNS, "reasons", "value", "chance_value"))
    return (
        Parts.of(output, scored, SEGMENTS, columns),
        Parts.of(output, selected, KEPT, THOUGHT_COLUMNS),
        Parts("select", CONTAMINATED, contaminated_urls(output, selected)),
        Parts.of(output, scored, NEAR_COPIES),
        *([rejected] if config.trace_per_epoch > 1 else []),
    )
