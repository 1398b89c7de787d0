"""`pack.trace_per_epoch`: another trace each epoch, the same source, as many rows; from the layout to what trainers read."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.config import MillConfig
from pipelines.run import mill
from pipelines.verify import verify
from pipelines.yaml_config import from_mapping, to_mapping
from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.packing.best_fit import pack_rows
from sharding.packing.epochs import in_more_rows, wanted_rows
from sharding.packing.order import split_of as split_of_text
from sharding.packing.recovery import items_of, source_of, thoughts_of
from sharding.records.rows import Item, Row, TokenType
from sharding.records.types import NOT_CHOSEN, Candidate
from sharding.shards.dataset import PackedDataset
from sharding.shards.grain_sources import DocumentSource, RowSource
from sharding.shards.rows import epoch_of
from sharding.shards.sampler import PackedSampler
from sharding.storage import manifest
from tests.conftest import rehearsal_tree

EPOCHS = 3
PACK = {"sequence_length": 256, "num_shards": 3, "validation_fraction": 0.2, "source_weights": {"book": 1.5}}
WORDS = ("mill", "stone", "water", "wheel", "grain", "flour", "sack", "cart", "road", "river", "bridge", "town")
TIERS = [
    {"name": "skip"},
    {"name": "deep", "model": "pretend", "prompt": "expert", "max_tokens": 96, "samples": 3},
]


def text_of(number: int) -> str:
    return f"Page {number}. " + " ".join(random.Random(number).choices(WORDS, k=10 + number % 50))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: str) -> MillConfig:
    """A run with three samples for each hard segment, of which epochs show others."""
    folder = tmp_path_factory.mktemp("epochs")
    lines = [json.dumps({"id": f"page-{n}", "text": text_of(n)}) for n in range(60)]
    (folder / "source.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tree = rehearsal_tree(folder, byte_tokenizer, str(folder / "source.jsonl"), layout="after_segment")
    tree["source"]["name"] = "book"
    tree["budget"] = {"thinking_tokens_per_source_token": 2.0, "tiers": TIERS}
    tree["pack"] = {**PACK, "trace_per_epoch": EPOCHS}
    made = from_mapping(tree)
    mill(made)
    return made


def rows_by_epoch(output: str, split: str = "train") -> list[list[Row]]:
    """The rows of every epoch, by reading the files that the manifest names."""
    packed = manifest.require(output, "pack")
    found: list[list[Row]] = [[] for _ in range(EPOCHS)]
    for family in ("shards", "epoch_shards"):
        for entry in packed.files.get(family, []):
            if f"/{split}-" in entry.name:
                found[epoch_of(entry)] += storage.read_records(storage.join(output, entry.name), Row)
    return found


def sources_of(rows: Iterable[Row]) -> dict[str, Counter[bytes]]:
    """Document → its source tokens, as often as it is there; put together from its pieces without their thoughts."""
    pieces: dict[str, dict[int, list[bytes]]] = {}
    for row in rows:
        for item in items_of(row):
            pieces.setdefault(item.doc_id, {}).setdefault(item.source_start, []).append(source_of(item).tobytes())
    whole = {}
    for doc_id, starts in pieces.items():
        assert len({len(copies) for copies in starts.values()}) == 1
        assert all(len(set(copies)) == 1 for copies in starts.values())
        text = b"".join(starts[start][0] for start in sorted(starts))
        whole[doc_id] = Counter({text: len(starts[0])})
    return whole


def shown_at(rows: Iterable[Row]) -> dict[tuple[str, int], set[bytes]]:
    """(document, place) → the thoughts that stand there."""
    shown: dict[tuple[str, int], set[bytes]] = {}
    for row in rows:
        for item in items_of(row):
            for thought in thoughts_of(item):
                shown.setdefault((item.doc_id, thought.place), set()).add(thought.input_ids.tobytes())
    return shown


def passed(output: str) -> dict[tuple[str, int], list[Candidate]]:
    """(document, segment) → the traces of it that passed all gates, where one was kept."""
    selected = manifest.require(output, "select")
    found: dict[tuple[str, int], list[Candidate]] = {}
    for family in ("kept", "rejected"):
        for url in manifest.file_urls(output, selected, family):
            for one in storage.read_records(url, Candidate):
                if one.kept or one.reasons == [NOT_CHOSEN]:
                    found.setdefault((one.doc_id, one.segment_index), []).append(one)
    return found


def test_the_source_is_the_same_in_every_epoch_and_so_is_the_number_of_rows(config: MillConfig) -> None:
    epochs = rows_by_epoch(config.output)
    assert len({len(rows) for rows in epochs}) == 1 and len(epochs[0]) > 10
    sources = [sources_of(rows) for rows in epochs]
    assert sources[0] == sources[1] == sources[2] and len(sources[0]) > 20
    assert any(copies > 1 for of in sources[0].values() for copies in of.values())
    packed = manifest.require(config.output, "pack")
    by_epoch: dict[int, list[int]] = {}
    for entry in packed.files["epoch_shards"]:
        by_epoch.setdefault(epoch_of(entry), []).append(entry.rows)
    assert sorted(by_epoch) == [1, 2]
    assert all(len(rows) == PACK["num_shards"] and max(rows) - min(rows) <= 1 for rows in by_epoch.values())
    validation = rows_by_epoch(config.output, "validation")
    assert validation[0] and not validation[1] and not validation[2]


def test_a_segment_shows_each_of_its_traces_once_and_the_kept_one_first(config: MillConfig) -> None:
    shown = [shown_at(rows) for rows in rows_by_epoch(config.output)]
    assert shown[0].keys() == shown[1].keys() == shown[2].keys()
    by_document: dict[str, list[set[bytes]]] = {}
    for epoch, places in enumerate(shown):
        for (doc_id, _), thoughts in places.items():
            by_document.setdefault(doc_id, [set() for _ in range(EPOCHS)])[epoch] |= thoughts
    with_three = 0
    for doc_id, epochs in by_document.items():
        segments = [of for (of_doc, _), of in sorted(passed(config.output).items()) if of_doc == doc_id]
        for traces in segments:
            kept = next(one for one in traces if one.kept)
            others = sorted((one for one in traces if not one.kept), key=lambda one: (-(one.value or 0.0), one.sample))
            if any(one.value is None for one in others):
                others = sorted(others, key=lambda one: (one.value is None, -(one.value or 0.0), one.sample))
            in_order = [kept, *others]
            texts = [one.input_ids.tobytes() for one in in_order]
            assert all(texts[epoch % len(texts)] in epochs[epoch] for epoch in range(EPOCHS))
            with_three += len(set(texts)) == 3
    assert with_three > 5


def test_the_first_epoch_is_the_corpus_without_the_key(config: MillConfig, tmp_path: Path) -> None:
    """Its documents, traces and validation shards; and where it needs the most rows of all, every byte."""
    tree = to_mapping(config)
    tree["pack"]["trace_per_epoch"] = 1
    tree |= {"output": str(tmp_path / "one"), "ledger": {"path": config.ledger_url}}
    one = from_mapping(tree)
    mill(one)
    assert "trace_per_epoch" not in manifest.require(one.output, "pack").config["pack"]
    mine, theirs = manifest.require(config.output, "pack"), manifest.require(one.output, "pack")
    assert "epoch_shards" not in theirs.files and not [name for name in theirs.counts if name.startswith("epoch.")]
    assert shown_at(rows_by_epoch(one.output)[0]) == shown_at(rows_by_epoch(config.output)[0])
    assert sources_of(rows_by_epoch(one.output)[0]) == sources_of(rows_by_epoch(config.output)[0])
    sums = [{e.name: e.sha256 for e in of.files["shards"] if "/validation-" in e.name} for of in (mine, theirs)]
    assert sums[0] == sums[1] and sums[0]
    changed = {"rows", "rows_train", "tokens_padding"}
    first = {name: count for name, count in mine.counts.items() if not name.startswith("epoch.")}
    assert {name for name in first if first[name] != theirs.counts[name]} <= changed
    added = mine.counts["rows"] - theirs.counts["rows"]
    whole = [{e.name: e.sha256 for e in of.files["shards"]} for of in (mine, theirs)]
    assert (whole[0] == whole[1]) == (not added)


def test_verify_compares_every_epoch_and_finds_what_is_wrong_in_one(config: MillConfig) -> None:
    report = verify(config.output, deep=True, workers=1)
    assert report.ok, report.problems
    packed = manifest.require(config.output, "pack")
    assert report.checked.thoughts_compared == packed.counts["thoughts"] + sum(
        packed.counts[f"epoch.{epoch}.thoughts"] for epoch in range(1, EPOCHS)
    )
    entry = packed.files["epoch_shards"][0]
    stray = Path(config.output, entry.name).with_name("train-00009-of-00010.arrow")
    stray.write_bytes(b"")
    try:
        assert ["no manifest names it" in problem.what for problem in verify(config.output).problems] == [True]
    finally:
        stray.unlink()


def ids(dataset: PackedDataset, numbers: Iterable[int]) -> list[bytes]:
    return [dataset[number]["input_ids"].astype(np.int64).tobytes() for number in numbers]


def test_the_sampler_reads_the_epochs_round_and_round_and_resumes_over_their_ends(config: MillConfig) -> None:
    dataset, epochs = PackedDataset(config.output), rows_by_epoch(config.output)
    assert (dataset.epochs, len(dataset)) == (EPOCHS, len(epochs[0]))
    stored = [Counter(row.input_ids.astype(np.int64).tobytes() for row in rows) for rows in epochs]
    assert stored[0] != stored[1] and stored[1] != stored[2]
    sampler = PackedSampler(dataset, rank=0, world_size=1, seed=5)
    orders = [list(sampler) for _ in range(EPOCHS + 1)]
    assert [Counter(ids(dataset, order)) for order in orders] == [*stored, stored[0]]
    assert Counter(ids(dataset, range(len(dataset)))) == stored[0] == Counter(
        row["input_ids"].astype(np.int64).tobytes() for row in dataset
    )
    # Two ranks stop close to the end of epoch 1; three go on, into epoch 2.
    ranks = [PackedSampler(dataset, rank=rank, world_size=2, seed=5, uneven="drop") for rank in range(2)]
    for one in ranks:
        one.set_epoch(1)
        iter(one).__next__()
    taken = len(dataset) // 2 - 2
    states = [one.state_after(taken) for one in ranks]
    assert states[0] == states[1] and states[0]["epoch"] == 1
    going_on = [PackedSampler(dataset, rank=rank, world_size=3, seed=5, uneven="drop") for rank in range(3)]
    for one in going_on:
        one.resume(states[0])
    for expected in (orders[1][2 * taken :], orders[2]):
        parts = [list(one) for one in going_on]
        in_turn = [number for together in zip(*parts, strict=True) for number in together]
        assert in_turn == expected[: len(expected) // 3 * 3]
    with pytest.raises(IndexError, match=f"0 to {EPOCHS * len(dataset) - 1}"):
        dataset[EPOCHS * len(dataset)]
    assert PackedDataset(config.output, "validation").epochs == 1


@pytest.mark.parametrize("seed", [None, 3])
def test_grain_sources_read_the_epochs(config: MillConfig, seed: int | None) -> None:
    epochs = rows_by_epoch(config.output)
    source = RowSource(config.output, seed=seed, epochs=EPOCHS)
    length = len(epochs[0])
    for epoch, rows in enumerate(epochs):
        found = Counter(source[epoch * length + place]["input_ids"].tobytes() for place in range(length))
        assert found == Counter(row.input_ids.astype(np.int32).tobytes() for row in rows)
    of_two = DocumentSource(config.output, epoch=EPOCHS + 2)
    found = Counter(of_two[number]["input_ids"].tobytes() for number in range(len(of_two)))
    assert found == Counter(item.input_ids.astype(np.int32).tobytes() for row in epochs[2] for item in items_of(row))
    with pytest.raises(RequestError, match="epoch: -1"):
        DocumentSource(config.output, epoch=-1)


# --- as many rows -----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 24), min_size=1, max_size=40), st.integers(0, 40))
def test_items_go_into_as_many_rows_as_are_wanted(lengths: list[int], more: int) -> None:
    items = [
        Item(
            doc_id=f"d{number}",
            source_start=0,
            input_ids=np.full(length, number, np.uint16),
            token_type=np.full(length, TokenType.SOURCE, np.uint8),
        )
        for number, length in enumerate(lengths)
    ]
    rows = list(pack_rows(items, 24))
    wanted = len(rows) + more
    if wanted > len(items):
        with pytest.raises(MillError, match=f"{len(items)} pieces .* {wanted} rows"):
            in_more_rows(rows, wanted, 24)
        return
    found = in_more_rows(rows, wanted, 24)
    assert len(found) == wanted and all(len(row.seq_lengths) for row in found)
    before = [item.doc_id for row in rows for item in items_of(row)]
    assert [item.doc_id for row in found for item in items_of(row)] == before
    if not more:
        assert all(one is other for one, other in zip(found, rows, strict=True))


@given(st.integers(0, 50), st.integers(1, 9), st.integers(0, 30))
def test_shards_stay_within_a_row_and_none_has_to_lose_one(rows: int, shards: int, more: int) -> None:
    base, longer = divmod(rows, shards)
    kept = [base + (shard >= shards - longer) for shard in range(shards)]
    wanted = wanted_rows(kept, rows + more)
    assert sum(wanted) == rows + more and max(wanted) - min(wanted) <= 1
    assert all(now >= before for now, before in zip(wanted, kept, strict=True))


# --- what can't be ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"select": {"keep": "all"}}, "pack.trace_per_epoch.*select.keep"),
        ({"select": {"trim": {}}}, "pack.trace_per_epoch.*select.trim"),
        ({"select": {"shuffle": True}}, "pack.trace_per_epoch.*select.shuffle"),
        ({"pack": {**PACK, "trace_per_epoch": 2, "max_rows": {"train": 9}}}, "trace_per_epoch.*max_rows"),
        ({"pack": {**PACK, "trace_per_epoch": 0}}, "trace_per_epoch"),
    ],
)
def test_what_goes_with_it_is_said_before_anything_is_read(
    config: MillConfig, sections: Mapping[str, Any], said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        from_mapping(to_mapping(config) | dict(sections))


def hashes(output: str) -> dict[str, str]:
    return {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(output, "data").rglob("*.arrow"))
    }
