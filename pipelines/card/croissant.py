"""Croissant: the dataset in the vocabulary of MLCommons (https://docs.mlcommons.org/croissant), beside the card.

Every shard with its sha256, and the columns of a row. The format knows no reader of Arrow streams, so it describes the
data and checks it; `datasets` and `sharding.shards.dataset` read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.card.front_matter import has_loss_mask, shard_patterns, splits
from pipelines.card.training_content import responsible
from sharding import records
from sharding.records.families import ROWS
from sharding.shards.rows import has_surprisal
from sharding.storage.manifest import Manifest

CONFORMS_TO = "http://mlcommons.org/croissant/1.1"
RESPONSIBLE_AI = "http://mlcommons.org/croissant/RAI/1.0"
ARROW_STREAM = "application/vnd.apache.arrow.stream"
"""The registered media type of the Arrow IPC stream format."""

CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""The JSON-LD context that the specification gives, version 1.1."""


def describe(stages: Mapping[str, Manifest], about: str) -> dict[str, Any]:
    """The dataset as Croissant JSON-LD.

    Args:
        stages: the four manifests.
        about: what the dataset is, in words.
    """
    packed = stages["pack"]
    card = packed.config["card"]
    entries = packed.files.get("shards", [])
    described: dict[str, Any] = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": [CONFORMS_TO, RESPONSIBLE_AI],
        "name": card["name"],
        "description": about,
        "version": "1.0.0",
        "license": card["license"],
        "inLanguage": list(card["language"]),
        "keywords": ["pretraining", "synthetic", "thinking-augmented", *(["rehearsal"] if packed.rehearsal else [])],
        "isBasedOn": [f"https://huggingface.co/datasets/{name}" for name in card["source_datasets"] if "/" in name],
        "isLiveDataset": False,
        **responsible(stages),
        "distribution": [
            *(
                {
                    "@type": "cr:FileObject",
                    "@id": entry.name,
                    "name": entry.name.rsplit("/", 1)[-1],
                    "contentUrl": entry.name,
                    "contentSize": f"{entry.size_bytes} B",
                    "encodingFormat": ARROW_STREAM,
                    "sha256": entry.sha256,
                }
                for entry in entries
            ),
            *(
                {
                    "@type": "cr:FileSet",
                    "@id": f"{split}-shards",
                    "name": f"{split}-shards",
                    "description": f"The shards of the split {split}.",
                    "encodingFormat": ARROW_STREAM,
                    "includes": patterns[0] if len(patterns) == 1 else patterns,
                }
                for split in splits(packed)
                for patterns in [shard_patterns(packed, split)]
            ),
        ],
        "recordSet": [_record_set(packed, split) for split in splits(packed)],
    }
    return {key: value for key, value in described.items() if value not in (None, [])}


def _record_set(packed: Manifest, split: str) -> dict[str, Any]:
    length, vocab_size = packed.config["pack"]["sequence_length"], packed.facts["vocab_size"]
    ids = f"cr:UInt{8 * records.token_dtype(vocab_size).itemsize}"
    columns = {
        "input_ids": (ids, f"{length}", "Token ids; padding is id 0."),
        "token_type": ("cr:UInt8", f"{length}", "0 padding, 1 source, 2 thought, 3 delimiter."),
        "seq_lengths": ("cr:Int32", "-1", "Tokens of each document in the row; what remains is padding."),
        "doc_ids": ("sc:Text", "-1", "The document of each of these."),
        "source_starts": ("cr:Int64", "-1", "Place of its first source token in the document."),
        "surprisal": ("sc:Float", f"{length}", "Nats of each source token under the scorer; NaN of all others."),
        "loss_mask": ("sc:Boolean", f"{length}", "Whether each token counts as one to be predicted."),
    }
    names = ROWS.schema(
        sequence_length=length,
        vocab_size=vocab_size,
        with_loss_mask=has_loss_mask(packed),
        with_surprisal=has_surprisal(packed),
    ).names
    return {
        "@type": "cr:RecordSet",
        "@id": split,
        "name": split,
        "description": f"The packed training sequences of the split {split}.",
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"{split}/{name}",
                "name": name,
                "description": columns[name][2],
                "dataType": columns[name][0],
                "isArray": True,
                "arrayShape": columns[name][1],
                "source": {"fileSet": {"@id": f"{split}-shards"}, "extract": {"column": name}},
            }
            for name in names
        ],
    }
