"""Ten thousand damaged lines through the whole mill: what is a document comes back byte for byte, the rest is named."""

import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.run import mill
from pipelines.verify import verify
from pipelines.yaml_config import from_mapping
from sharding import storage
from sharding.models.tokenizer import load_tokenizer
from sharding.packing.recovery import document_source, items_of
from sharding.records.rows import Item, Row
from sharding.records.types import Document, Quarantined
from sharding.sources import SourceConfig
from sharding.storage import manifest
from tests.fuzz.conftest import Tally
from tests.fuzz.test_fuzz_sources import NUM_DOCUMENTS, random_line
from tests.source_files import read_all


def read_back(output: str, tokenizer: str) -> dict[str, str]:
    """Id of each document in the shards → its text."""
    items: dict[str, list[Item]] = defaultdict(list)
    for url in manifest.file_urls(output, manifest.require(output, "pack"), "shards"):
        for row in storage.read_records(url, Row):
            for item in items_of(row):
                items[item.doc_id].append(item)
    decode = load_tokenizer(tokenizer).decode
    return {doc_id: decode(document_source(found)) for doc_id, found in items.items()}


@pytest.mark.slow
def test_ten_thousand_lines_through_the_mill(
    tmp_path: Path, byte_tokenizer: str, rehearsal_config: Callable[..., dict[str, Any]], tally: Tally
) -> None:
    rng = random.Random(23)
    lines = [random_line(rng) for _ in range(NUM_DOCUMENTS)]
    source = tmp_path / "source.jsonl"
    source.write_bytes(b"\n".join(lines))
    section = {"path": str(source), "id_field": "id", "metadata_fields": ["kind"], "max_document_bytes": 60_000}
    section["max_quarantined"] = 1
    tiers = [{"name": "skip"}, {"name": "brief", "model": "pretend", "prompt": "brief", "max_tokens": 48}]
    budget = {"thinking_tokens_per_source_token": 0.05, "tiers": tiers}
    config = from_mapping({**rehearsal_config(str(source), budget=budget), "source": section})
    done = mill(config)
    assert verify(config.output, deep=True).problems == []
    read = read_all(SourceConfig(path=str(source), id_field="id", metadata_fields=("kind",), max_document_bytes=60_000))
    documents = [record for record in read if isinstance(record, Document)]
    counts = done["score"].counts
    assert counts["documents_in"] == sum(bool(line.strip()) for line in lines)
    assert counts["documents"] == len(documents) > 2_000
    # Ids that are there twice get a number, so texts are compared as a bag.
    assert Counter(read_back(config.output, byte_tokenizer).values()) == Counter(d.text for d in documents)
    refused = [
        record
        for url in manifest.file_urls(config.output, done["score"], "quarantine")
        for record in storage.read_records(url, Quarantined)
    ]
    assert len(refused) == counts["quarantined"] == counts["documents_in"] - counts["documents"]
    assert all(str(source) in record.origin and record.detail for record in refused)
    outcomes = Counter(record.reason for record in refused)
    assert outcomes["too_long"] > 0
    tally("JSON lines through the whole mill", {"document": len(documents), **outcomes})


ABSURD: dict[str, Any] = {
    "a text of 20 million characters": {"id": "1", "text": "word " * 4_000_000},
    "a text of one word of a million letters": {"id": "1", "text": "x" * 1_000_000},
    "an id of 5 million characters": {"id": "i" * 5_000_000, "text": "text"},
    "a key of 5 million characters": {"id": "1", "text": "text", "k" * 5_000_000: 1},
    "200,000 keys": {"id": "1", "text": "text", **{f"k{i}": i for i in range(200_000)}},
    "metadata of a million values": {"id": "1", "text": "text", "kind": list(range(1_000_000))},
    "an id that is a list of a million values": {"id": list(range(1_000_000)), "text": "text"},
}


@pytest.mark.slow
@pytest.mark.parametrize("record", ABSURD.values(), ids=ABSURD)
def test_absurd_lengths(tmp_path: Path, record: dict[str, Any]) -> None:
    """Taken where there is room, refused by the limit where there is none; never an error, never cut."""
    path = tmp_path / "f.jsonl"
    path.write_text(json.dumps(record))
    size = path.stat().st_size
    plain: dict[str, Any] = {"path": str(path), "id_field": "id", "metadata_fields": ("kind",)}
    [found] = read_all(SourceConfig(**plain, max_document_bytes=size))
    if isinstance(record["id"], str):
        assert isinstance(found, Document) and (found.doc_id, found.text) == (record["id"], record["text"])
    else:
        assert isinstance(found, Quarantined) and found.reason == "missing_id"
    [found] = read_all(SourceConfig(**plain, max_document_bytes=size - 1))
    assert isinstance(found, Quarantined) and found.reason == "too_long" and len(found.detail) < 1_000
