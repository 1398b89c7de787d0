"""`pack.trace_per_epoch`: another trace each epoch, the same source, as many rows; from layout to readers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import typer.testing
from datasets import load_dataset
from hypothesis import given
from hypothesis import strategies as st

from pipelines import cli, provenance
from pipelines.append import append
from pipelines.arms import mill_arms
from pipelines.config import MillConfig
from pipelines.run import mill
from pipelines.takedown import remove
from pipelines.takedown.absent import add_search
from pipelines.takedown.ids import Wanted
from pipelines.takedown.refilling import Gift, Items, gifts_of
from pipelines.verify import verify
from pipelines.yaml_config import dump, from_mapping, to_mapping
from sharding import storage
from sharding.beam.part_join import JoinedDocument
from sharding.errors import MillError, RequestError
from sharding.models.tokenizer import load_tokenizer
from sharding.packing.best_fit import pack_rows
from sharding.packing.config import PackConfig
from sharding.packing.epochs import in_more_rows, least_value, shown_in, wanted_rows
from sharding.packing.laying_out import DocumentLayout, encode_delimiters
from sharding.packing.recovery import document_source, items_of, source_of, thoughts_of
from sharding.records.rows import Item, Row, TokenType
from sharding.records.types import NOT_CHOSEN, Candidate, ScoredDocument
from sharding.shards.dataset import PackedDataset
from sharding.shards.export.hub import published_names
from sharding.shards.grain_sources import DocumentSource, RowSource
from sharding.shards.rows import epoch_of
from sharding.shards.sampler import PackedSampler
from sharding.storage import lease, manifest
from tests.conftest import rehearsal_tree
from tests.killing import killed_at

EPOCHS = SHARDS = 3
PACK = {"sequence_length": 256, "num_shards": SHARDS, "validation_fraction": 0.2, "source_weights": {"book": 1.5}}
WORDS = ("mill", "stone", "water", "wheel", "grain", "flour", "sack", "cart", "road", "river", "bridge", "town")
TIERS = [
    {"name": "skip"},
    {"name": "deep", "model": "pretend", "prompt": "expert", "max_tokens": 96, "samples": 3},
]


NOT_READ = ("surprisal_nats", "entropy_nats", "memory_nats", "segment_difficulty_nats")


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


@pytest.fixture
def copy(config: MillConfig, tmp_path: Path) -> MillConfig:
    """The corpus in a place of its own, as its ledger is."""
    shutil.copytree(config.output, tmp_path / "out")
    return from_mapping(to_mapping(config) | {"output": str(tmp_path / "out")})


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
    assert all(len(rows) == SHARDS and max(rows) - min(rows) <= 1 for rows in by_epoch.values())
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
    for (doc_id, _), traces in passed(config.output).items():
        if doc_id not in by_document:  # in the other split
            continue
        others = [one for one in traces if not one.kept]
        others.sort(key=lambda one: (one.value is None, -(one.value or 0.0), one.sample))
        in_order = [next(one for one in traces if one.kept), *others]
        texts = [one.input_ids.tobytes() for one in in_order]
        assert all(texts[epoch % len(texts)] in by_document[doc_id][epoch] for epoch in range(EPOCHS))
        with_three += len(set(texts)) == 3
    assert with_three > 5


def scored_document(input_ids: np.ndarray, segment_starts: np.ndarray) -> ScoredDocument:
    nothing: dict[str, Any] = dict.fromkeys(NOT_READ, np.empty(0))
    return ScoredDocument(doc_id="d", input_ids=input_ids, segment_starts=segment_starts, **nothing)


def candidate(segment: int, sample: int, value: float | None, reasons: Sequence[str] = (NOT_CHOSEN,)) -> Candidate:
    plain: dict[str, Any] = dict.fromkeys(("tier", "model", "prompt", "closed", "finish_reason", "text"), "")
    return Candidate(
        doc_id="d",
        segment_index=segment,
        key=f"{segment}-{sample}",
        sample=sample,
        **plain,
        thought_tokens=1,
        input_ids=np.array([sample], np.uint16),
        shown_tokens=1,
        value=value,
        chance_value=0.5,
        kept=not reasons,
        reasons=list(reasons),
    )


def test_which_traces_are_shown_and_in_which_order() -> None:
    """The kept one, then those that passed by value, then without one; not what a gate or `min_value` refuses."""
    kept = [candidate(0, 3, 1.0, ()), candidate(2, 0, 9.0, ())]
    rejected = [
        *(candidate(0, 0, None), candidate(0, 1, 0.9), candidate(0, 2, 4.0), candidate(0, 4, 4.0)),
        candidate(0, 5, 99.0, ["loop"]),
        candidate(1, 0, 5.0, ["below_threshold"]),
        candidate(1, 1, 5.0),  # of a segment that kept none
    ]
    nothing = np.empty(0, np.int64)
    document = JoinedDocument(scored_document(nothing, nothing), {"kept": kept, "rejected": rejected})

    def samples(epoch: int, least: float | None = None) -> list[int]:
        return [one.sample for one in shown_in(document, epoch, least).beside["kept"]]

    assert [samples(epoch) for epoch in range(6)] == [[3, 0], [2, 0], [4, 0], [1, 0], [0, 0], [3, 0]]
    assert [samples(epoch, 0.5) for epoch in range(4)] == [[3, 0], [2, 0], [4, 0], [3, 0]]
    assert shown_in(document, 0) is document and shown_in(document, 5) is document
    assert least_value({"keep": "best_above", "min_value": 0.5}) == 0.5
    assert least_value({"keep": "best", "min_value": 0.0}) is None


def test_the_first_epoch_is_the_corpus_without_the_key(copy: MillConfig) -> None:
    """Its documents, traces and validation shards; only what makes epochs equally long may cut and pad more."""
    mine, first = manifest.require(copy.output, "pack"), rows_by_epoch(copy.output)[0]
    tree = to_mapping(copy)
    tree["pack"]["trace_per_epoch"] = 1
    mill(from_mapping(tree), stages=("pack",), replace=True)
    theirs = manifest.require(copy.output, "pack")
    assert "trace_per_epoch" not in theirs.config["pack"]
    assert "epoch_shards" not in theirs.files and not [name for name in theirs.counts if name.startswith("epoch.")]
    assert shown_at(rows_by_epoch(copy.output)[0]) == shown_at(first)
    assert sources_of(rows_by_epoch(copy.output)[0]) == sources_of(first)
    sums = [{e.name: e.sha256 for e in of.files["shards"] if "/validation-" in e.name} for of in (mine, theirs)]
    assert sums[0] == sums[1] and sums[0]
    changed = {name for name in theirs.counts if mine.counts[name] != theirs.counts[name]}
    longer = {"rows", "rows_train", "tokens_padding"}
    assert changed <= longer | {"items", "source_cuts", "segments_cut", "documents_cut"}, changed
    assert mine.counts["rows"] >= theirs.counts["rows"]


def test_where_nothing_else_is_shown_the_corpus_has_the_same_bytes(copy: MillConfig) -> None:
    """Nothing but other traces changes shards; here every document stays plain."""
    tree, found = to_mapping(copy), []
    for epochs in (1, EPOCHS):
        tree["pack"] |= {"raw_fraction": 1.0, "trace_per_epoch": epochs}
        mill(from_mapping(tree), stages=("pack",), replace=True)
        packed = manifest.require(copy.output, "pack")
        found.append({entry.name: entry.sha256 for entry in packed.files["shards"]})
    assert found[0] == found[1]
    by_epoch = rows_by_epoch(copy.output)
    assert sources_of(by_epoch[0]) == sources_of(by_epoch[1]) and not any(map(shown_at, by_epoch))


def test_documents_of_many_rows_have_as_many_pieces_in_every_epoch(byte_tokenizer: str) -> None:
    """Long traces in one epoch would cut a book into more pieces than in another, and rows couldn't be made as many."""
    tokenizer = load_tokenizer(byte_tokenizer)
    words = [" ".join(random.Random(n).choices(WORDS, k=40)) for n in range(3 * 30)]
    ids = [tokenizer.encode(text) for text in words[:30]]
    starts = np.cumsum([0, *map(len, ids[:-1])])
    scored = scored_document(np.concatenate(ids), starts)
    kept, rejected = (
        [
            msgspec.structs.replace(
                candidate(n, sample, 1.0, reasons), input_ids=tokenizer.encode(text[:size]), shown_tokens=len(ids[n])
            )
            for n, text in enumerate(words[30 * (1 + sample) : 30 * (2 + sample)])
        ]
        for sample, size, reasons in ((0, 20, ()), (1, 150, (NOT_CHOSEN,)))
    )
    document = JoinedDocument(scored, {"kept": kept, "rejected": rejected, "contaminated": []})
    config = PackConfig(sequence_length=512, trace_per_epoch=2)
    counts = Counter[str]()
    layout = DocumentLayout(config, "after_segment", tokenizer, encode_delimiters(config, tokenizer))
    items = list(layout.items(document, counts))
    by_epoch = [[item for item in items if item.epoch == epoch] for epoch in range(2)]
    assert len(by_epoch[0]) == len(by_epoch[1]) == counts["items"] == counts["epoch.1.items"] > 10
    assert all(len(item.input_ids) <= 512 for item in items)
    assert [document_source(of).tobytes() for of in by_epoch] == [scored.input_ids.tobytes()] * 2
    assert counts["thoughts"] == counts["epoch.1.thoughts"] == 30 and not counts["thoughts_cut"]
    one = dataclasses.replace(layout, config=PackConfig(sequence_length=512))
    assert len(list(one.items(document, Counter[str]()))) < len(by_epoch[0])


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
    assert (
        Counter(ids(dataset, range(len(dataset))))
        == stored[0]
        == Counter(row["input_ids"].astype(np.int64).tobytes() for row in dataset)
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


def test_the_card_names_the_epochs_and_the_first_is_the_default(config: MillConfig, tmp_path: Path) -> None:
    loaded = {name: load_dataset(config.output, *name, cache_dir=str(tmp_path)) for name in ((), ("epoch-2",))}
    epochs = rows_by_epoch(config.output)
    for name, epoch in ((), 0), (("epoch-2",), 2):
        found = Counter(str(ids) for ids in loaded[name]["train"]["input_ids"])
        assert found == Counter(str(row.input_ids.tolist()) for row in epochs[epoch])
    assert loaded[()]["validation"]["input_ids"] == loaded["epoch-2",]["validation"]["input_ids"]
    card = Path(config.output, "README.md").read_text(encoding="utf-8")
    assert "| train in epoch 2 |" in card and '"epoch-1")` gives those of epoch 1' in card
    names = published_names(config.output)
    assert sum(name.startswith("data/epoch-") for name in names) == 2 * SHARDS


def test_exports_are_of_the_first_epoch_and_say_so(config: MillConfig, tmp_path: Path) -> None:
    arguments = ["export", config.output, "--to", "parquet", "--target", str(tmp_path / "parquet")]
    told = typer.testing.CliRunner().invoke(cli.app, arguments)
    assert told.exit_code == 0 and "epoch 0 alone was exported" in " ".join(told.output.split())
    rows = sum(pq.read_metadata(path).num_rows for path in (tmp_path / "parquet" / "train").iterdir())
    assert rows == len(PackedDataset(config.output))


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
    packed = manifest.require(output, "pack")
    return {entry.name: entry.sha256 for family in packed.files.values() for entry in family}


def test_what_is_made_for_one_epoch_refuses_several_and_its_way_out_is_one(copy: MillConfig, tmp_path: Path) -> None:
    before = hashes(copy.output)
    with pytest.raises(RequestError, match=r"3 epochs with shards .* --set pack.trace_per_epoch=1 --replace"):
        append(copy, [copy.all_sources[0].config.path])
    with pytest.raises(RequestError, match=r"pack.trace_per_epoch: 3, and arms .* --set pack.trace_per_epoch=1"):
        mill_arms(copy)
    assert hashes(copy.output) == before
    path = tmp_path / "mill.yaml"
    path.write_text(dump(copy), encoding="utf-8")
    arguments = ["pack", str(path), "--set", "pack.trace_per_epoch=1", "--replace"]
    told = typer.testing.CliRunner().invoke(cli.app, arguments)
    assert told.exit_code == 0, told.output
    assert not list(Path(copy.output, "data").glob("epoch-*/*"))


# --- takedown ---------------------------------------------------------------------------------------------------------


def emptied(epochs: Sequence[Sequence[Row]], gone: frozenset[str]) -> list[int]:
    """How many rows of each epoch hold nothing but these documents."""
    return [sum(set(row.doc_ids) <= gone for row in rows) for rows in epochs]


def uneven(epochs: Sequence[Sequence[Row]]) -> frozenset[str]:
    """The documents of some row, without which more rows of one epoch hold nothing than of another."""
    for row in (row for rows in epochs for row in rows):
        if len(set(emptied(epochs, frozenset(row.doc_ids)))) > 1:
            return frozenset(row.doc_ids)
    raise AssertionError("the epochs have the same rows")


def held(output: str) -> dict[str, Counter[str]]:
    """The documents of every shard of every epoch."""
    packed = manifest.require(output, "pack")
    return {
        entry.name: Counter(
            doc_id for row in storage.read_records(storage.join(output, entry.name), Row) for doc_id in row.doc_ids
        )
        for family in ("shards", "epoch_shards")
        for entry in packed.files[family]
    }


def test_a_document_leaves_every_epoch_and_all_stay_as_long(copy: MillConfig) -> None:
    before, epochs, shards = hashes(copy.output), rows_by_epoch(copy.output), held(copy.output)
    gone = uneven(epochs)
    done = remove(copy.output, Wanted(gone, {doc_id: text_of(int(doc_id.split("-")[1])) for doc_id in gone}))
    assert done.documents == len(gone) and done.shards
    after, left = hashes(copy.output), rows_by_epoch(copy.output)
    assert {name for name in shards if before[name] != after[name]} == {
        name for name, of_shard in shards.items() if not gone.isdisjoint(of_shard)
    }
    assert held(copy.output) == {
        name: Counter({doc_id: n for doc_id, n in of_shard.items() if doc_id not in gone})
        for name, of_shard in shards.items()
    }
    filled = [sum(bool(row.doc_ids) for row in rows) for rows in left]
    assert filled == [len(rows) - min(emptied(epochs, gone)) for rows in epochs]
    expected = {doc_id: text for doc_id, text in sources_of(epochs[0]).items() if doc_id not in gone}
    assert [sources_of(rows) for rows in left] == [expected] * EPOCHS
    for rows, rows_before in zip(left, epochs, strict=True):
        was = {place: thoughts for place, thoughts in shown_at(rows_before).items() if place[0] not in gone}
        assert shown_at(rows) == was
    dataset = PackedDataset(copy.output)
    assert (dataset.epochs, len(dataset)) == (EPOCHS, filled[0])
    report = verify(copy.output, deep=True, workers=1)
    add_search(report, Wanted(gone, {doc_id: text_of(int(doc_id.split("-")[1])) for doc_id in gone}))
    assert report.ok, report.problems
    again = remove(copy.output, Wanted(uneven(left), {}))
    assert again.documents and PackedDataset(copy.output).rows and verify(copy.output).ok
    did_each: list[object] = []
    mill(copy, on_stage=lambda stage, made, did: did_each.append(did))
    assert set(did_each) == {"nothing"}
    mill(copy, stages=("pack",), force=True)
    repacked = rows_by_epoch(copy.output)
    assert sources_of(repacked[2]) == sources_of(repacked[0]) and gone.isdisjoint(sources_of(repacked[0]))


def test_verify_tells_epochs_that_hold_other_numbers_of_rows(copy: MillConfig) -> None:
    packed = manifest.require(copy.output, "pack")
    first, *others = packed.files["epoch_shards"]
    damaged = [msgspec.structs.replace(first, padding_rows=1), *others]
    packed = msgspec.structs.replace(packed, files={**packed.files, "epoch_shards": damaged})
    manifest.write(copy.output, packed)
    rows = sum(entry.rows for entry in packed.files["shards"] if "/train-" in entry.name)
    said = f"{rows - 1} rows of epoch 1 hold anything, and {rows} of train in epoch 0"
    assert said in [problem.what for problem in verify(copy.output).problems]


def test_killed_anywhere_a_removal_of_all_epochs_goes_on(
    copy: MillConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_SETTLE_S", 0.0)
    gone = Wanted(uneven(rows_by_epoch(copy.output)), {})
    whole = tmp_path / "whole"
    shutil.copytree(copy.output, whole)
    remove(copy.output, gone)
    expected, outcomes = hashes(copy.output), set()
    for operation in (30, 42, 60, 400):
        shutil.rmtree(copy.output)
        shutil.copytree(whole, copy.output)
        killed = killed_at(operation, lambda: remove(copy.output, gone))
        begun = Path(copy.output, "stages/removal/REMOVAL.json").exists()
        outcomes.add(("between" if begun else "before") if killed else "whole")
        remove(copy.output, gone, missing_ok=True)
        assert hashes(copy.output) == expected
        assert {entry["sha256"] for entry in files_of(copy.output)} == set(expected.values())
    assert outcomes >= {"between", "whole"} and verify(copy.output).ok


def files_of(output: str) -> Iterator[dict[str, str]]:
    """Name and sha256 of what lies in the folders of the shards and of the index."""
    for path in sorted(Path(output).glob("data/**/*.arrow")) + sorted(Path(output).glob("index/*.arrow")):
        yield {"name": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=6), min_size=2, max_size=4),
    st.integers(0, 3),
)
def test_emptied_rows_are_filled_until_all_epochs_are_as_long(rows: list[list[tuple[int, int]]], shards: int) -> None:
    """Rows as (items that go, items that stay), dealt out to shards."""
    epochs = []
    for in_epoch in rows:
        dealt: dict[str, Items] = {}
        for number in range(shards + 1):
            mine = np.array(in_epoch[number :: shards + 1], np.int64).reshape(-1, 2)
            dealt[f"s{number}"] = Items(mine.sum(axis=1), mine[:, 1].copy())
        epochs.append(dealt)
    left = [{name: items.left.copy() for name, items in of_epoch.items()} for of_epoch in epochs]
    most = max(sum(int((items > 0).sum()) for items in of_epoch.values()) for of_epoch in left)
    can = []
    for of_epoch, counts in zip(epochs, left, strict=True):
        room = sum(len(items.emptied) for items in of_epoch.values())
        spare = sum(int(np.maximum(items - 1, 0).sum()) for items in counts.values())
        lacking = most - sum(int((items > 0).sum()) for items in counts.values())
        can.append(lacking <= min(room, spare))
    try:
        gifts = gifts_of(epochs)
    except MillError:
        assert not all(can)
        return
    assert all(can)
    where = iter(gifts)
    for of_epoch, counts in zip(epochs, left, strict=True):
        lacking = most - sum(int((items > 0).sum()) for items in counts.values())
        own = [next(where) for _ in range(lacking)]
        for gift in own:
            assert counts[gift.giver[0]][gift.giver[1]] > 1 and gift.taker[1] in of_epoch[gift.taker[0]].emptied
            assert counts[gift.taker[0]][gift.taker[1]] == 0
            counts[gift.giver[0]][gift.giver[1]] -= 1
            counts[gift.taker[0]][gift.taker[1]] += 1
        assert sum(int((items > 0).sum()) for items in counts.values()) == most
        takers = {gift.taker[0] for gift in own if gift.giver[0] != gift.taker[0]}
        assert takers.isdisjoint({gift.giver[0] for gift in own if gift.giver[0] != gift.taker[0]})
    assert next(where, None) is None


def test_a_shard_without_a_row_to_share_takes_from_another() -> None:
    """Nothing but whole rows in the shard that loses one, and no document of those that go in the other."""
    numbers = np.array([1, 1]), np.array([0, 1])
    epochs = [
        {"a": Items(np.array([2, 1]), np.array([1, 1])), "b": Items(np.array([2, 2]), np.array([2, 2]))},
        {"c": Items(*numbers), "d": Items(np.array([3, 2]), np.array([3, 2]))},
    ]
    assert gifts_of(epochs) == [Gift(("d", 0), ("c", 0))]


# --- provenance -------------------------------------------------------------------------------------------------------


def provenance_of(output: str) -> list[dict[str, Any]]:
    files = sorted(Path(output, "provenance").glob("thoughts-*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def test_provenance_tells_which_epochs_show_a_thought(copy: MillConfig) -> None:
    made = provenance.write(copy.output)
    rows, traces = provenance_of(copy.output), passed(copy.output)
    assert made.of["epochs"] == str(EPOCHS) and msgspec.json.encode(
        provenance.write(copy.output)
    ) == msgspec.json.encode(made)
    by_key = {row["key"]: row for row in rows}
    kept = {one.key for of in traces.values() for one in of if one.kept}
    assert len(by_key) == len(rows) > len(kept) and kept == {row["key"] for row in rows if 0 in row["epochs"]}
    order = [(row["doc_id"], row["segment_index"], row["sample"]) for row in rows]
    assert order == sorted(order)
    shown = [shown_at(of_epoch) for of_epoch in rows_by_epoch(copy.output)]
    thoughts = [{(doc_id, text) for (doc_id, _), texts in of_epoch.items() for text in texts} for of_epoch in shown]
    in_train = {doc_id for doc_id, _ in shown[0]}
    for of_segment in traces.values():
        told = [sorted(by_key[one.key]["epochs"]) for one in of_segment if one.key in by_key]
        assert sorted(epoch for epochs in told for epoch in epochs) == list(range(EPOCHS))
        for one in of_segment:
            if one.doc_id in in_train and one.key in by_key:
                assert all((one.doc_id, one.input_ids.tobytes()) in thoughts[e] for e in by_key[one.key]["epochs"])
    assert all(row["model"] == "pretend" and row["prompt_version"] for row in rows)
    assert not verify(copy.output).problems
    tree = to_mapping(copy)
    tree["pack"]["trace_per_epoch"] = 1
    mill(from_mapping(tree), stages=("pack",), replace=True)
    assert ["`thoughtmill provenance` makes it anew" in one.what for one in verify(copy.output).problems] == [True]
    provenance.write(copy.output)
    assert not verify(copy.output).problems
    assert {row["key"]: row["epochs"] for row in provenance_of(copy.output)} == {key: [0] for key in kept}


# --- the order of work ------------------------------------------------------------------------------------------------


def test_another_way_to_run_it_gives_the_same_bytes(copy: MillConfig) -> None:
    before = hashes(copy.output)
    Path(copy.output, "MANIFEST.json").unlink()
    shutil.rmtree(Path(copy.output, "data"))
    mill(copy, stages=("pack",), beam_args=["--direct_num_workers=2", "--direct_running_mode=multi_threading"])
    assert hashes(copy.output) == before
