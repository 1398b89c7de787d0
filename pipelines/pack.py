"""Stage 4, pack: segments and kept thoughts → training sequences in Arrow shards, with their card.

segments ─────┐
kept ─────────┼─► by document ─► left out, or laid out as items ─► packed, shuffled, balanced ─► data/*.arrow
contaminated ─┤                      └► counts                   └► where each document is ─► index/*.arrow
near-copies ──┘
"""

from __future__ import annotations

from typing import Any

import apache_beam as beam

from pipelines import card, yaml_config
from pipelines.card import versions
from pipelines.config import MillConfig
from pipelines.delivered import delivered_inputs, shards_before
from pipelines.joints import contaminated_urls
from pipelines.outcome import Built, Outcome
from pipelines.secrets import without_secrets
from pipelines.stage import Stage
from pipelines.tombstones import removal_facts
from sharding import storage
from sharding.beam.joins import JoinParts
from sharding.beam.part_join import Parts
from sharding.beam.part_names import part_count
from sharding.models.tokenizer import load_tokenizer
from sharding.packing.as_trainer import promise
from sharding.packing.laying_out import delimiter_warnings, encode_delimiters
from sharding.packing.surprisal import check_surprisal
from sharding.packing.transforms import LayOut, PackShards
from sharding.records.families import CONTAMINATED, DOCUMENTS, KEPT, NEAR_COPIES, ROWS, SEGMENTS
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
        self.work_s = SECONDS_PER_TOKEN * earlier["score"].counts["source_tokens"]
        check_surprisal(config.pack, self.tokenizer, earlier["score"].config["difficulty"].get("scorer", ""))
        super().__init__(
            config.output,
            sections={"tokenizer": config.tokenizer, "layout": config.layout, "pack": config.pack, "card": config.card},
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
        parts = parts_of(output, scored, selected, surprisal=config.pack.surprisal)
        documents = root | "Documents" >> JoinParts(*parts)
        laid_out = documents | "Lay out" >> LayOut(config.pack, config.layout, config.tokenizer)
        rows_of = PackShards(self.folder, config.pack, self.tokenizer, self.num_parts, self.numbered_from)
        shards = laid_out["items"] | "Shards" >> rows_of
        files = {ROWS: shards["files"], DOCUMENTS: shards["index"]}
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


def parts_of(
    output: str, scored: Manifest, selected: Manifest, *, surprisal: bool = False
) -> tuple[Parts, Parts, Parts, Parts]:
    """What a corpus is packed from: documents, their kept thoughts, which of them are left out as contaminated, and
    which are near-copies of each other.

    Args:
        surprisal: with that of every token of the documents.
    """
    columns = (*SEGMENT_COLUMNS, *(["surprisal_nats"] if surprisal else []))
    return (
        Parts.of(output, scored, SEGMENTS, columns),
        Parts.of(output, selected, KEPT, THOUGHT_COLUMNS),
        Parts("select", CONTAMINATED, contaminated_urls(output, selected)),
        Parts.of(output, scored, NEAR_COPIES),
    )
