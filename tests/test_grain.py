"""`shards.grain_sources` under the real Grain: fields, exact states at any world size, and mixes by weight."""

from __future__ import annotations

import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grain.python as grain
import numpy as np
import pytest
from grain.experimental import FirstFitPackIterDataset

from sharding.shards.dataset import PackedDataset
from sharding.shards.export import export
from sharding.shards.export.arrayrecord import parse
from sharding.shards.grain_sources import DocumentSource, RowSource
from sharding.shards.rows import IGNORED_LABEL
from sharding.shards.sampler import EpochOrder
from tests.packed_output import PackedOutput, write_output


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> PackedOutput:
    return write_output(str(tmp_path_factory.mktemp("output")), policy="no_delimiters")


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and np.array_equal(one[name], other[name]) for name in one
    )


def test_a_row_has_what_trainers_take(output: PackedOutput) -> None:
    source = RowSource(output.url)
    assert len(source) == len(output.rows("train"))
    rows = [source[number] for number in range(len(source))]
    for found, row, stored in zip(rows, PackedDataset(output.url), output.rows("train"), strict=True):
        assert {name: values.dtype.name for name, values in found.items()} == {
            "input_ids": "int32", "labels": "int32", "positions": "int32", "segment_ids": "int32", "loss_mask": "bool",
        }  # fmt: skip
        np.testing.assert_array_equal(found["input_ids"], stored.input_ids)
        # What is predicted at a place is the token behind it: the label that a model of transformers shifts.
        np.testing.assert_array_equal(found["labels"][:-1], row["labels"][1:])
        assert found["labels"][-1] == IGNORED_LABEL
        np.testing.assert_array_equal(found["loss_mask"], found["labels"] != IGNORED_LABEL)
        rest = 64 - int(stored.seq_lengths.sum())
        lengths = [*stored.seq_lengths.tolist(), rest]
        assert found["segment_ids"].tolist() == [
            number if number <= len(stored.seq_lengths) else 0
            for number, length in enumerate(lengths, start=1)
            for _ in range(length)
        ]
        assert found["positions"].tolist() == [place for length in lengths for place in range(length)]


def test_documents_are_the_items_of_the_rows(output: PackedOutput) -> None:
    source = DocumentSource(output.url)
    expected = []
    for row in output.rows("train"):
        ends = np.cumsum(row.seq_lengths)
        expected += [row.input_ids[end - length : end] for end, length in zip(ends, row.seq_lengths, strict=True)]
    assert len(source) == len(expected)
    for number, ids in enumerate(expected):
        found = source[number]
        np.testing.assert_array_equal(found["input_ids"], ids)
        assert found["positions"].tolist() == list(range(len(ids))) and found["labels"][-1] == IGNORED_LABEL
        assert set(found["segment_ids"].tolist()) == {1}
        assert {len(values) for values in found.values()} == {len(ids)}


def test_a_seed_gives_every_epoch_the_order_of_the_sampler(output: PackedOutput) -> None:
    source, dataset = RowSource(output.url, seed=3, epochs=2), PackedDataset(output.url)
    orders = [EpochOrder(dataset, 3, epoch) for epoch in range(2)]
    assert len(source) == 2 * len(dataset)
    for number in range(len(source)):
        epoch, place = divmod(number, len(dataset))
        np.testing.assert_array_equal(source[number]["input_ids"], dataset[orders[epoch].row_at(place)]["input_ids"])


@pytest.mark.parametrize("kind", [RowSource, DocumentSource])
def test_what_is_not_there_is_an_error(output: PackedOutput, kind: Any) -> None:
    source = kind(Path(output.url))
    for index in (-1, len(source)):
        with pytest.raises(IndexError, match=f"{index} is not one of 0 to {len(source) - 1}"):
            source[index]


def test_a_state_of_grain_is_exact(output: PackedOutput) -> None:
    """Taken anywhere, as JSON, and set on an iterator of another process's making."""

    def pipeline() -> Any:
        rows = grain.MapDataset.source(RowSource(output.url, seed=0, epochs=3))
        return iter(rows.batch(4).to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))

    whole = list(pipeline())
    for steps in (0, 1, 7, len(whole) - 1):
        first = pipeline()
        for _ in range(steps):
            next(first)
        state = json.loads(json.dumps(first.get_state()))
        resumed = pipeline()
        resumed.set_state(state)
        rest = list(resumed)
        assert len(rest) == len(whole) - steps
        assert all(same(one, other) for one, other in zip(rest, whole[steps:], strict=True))


def test_rows_go_on_at_another_world_size(output: PackedOutput) -> None:
    rows = grain.MapDataset.source(RowSource(output.url, seed=0, epochs=2))

    def ranks(world_size: int, rows_taken: int) -> list[Any]:
        return [iter(rows[rows_taken + rank :: world_size].to_iter_dataset()) for rank in range(world_size)]

    before = ranks(2, 0)
    taken = [next(rank) for _ in range(5) for rank in before]
    after = ranks(3, 10)
    taken += [next(rank) for _ in range(5) for rank in after]
    assert all(same(found, rows[number]) for number, found in enumerate(taken))


def test_grains_loader_refuses_the_state_of_another_corpus(output: PackedOutput, tmp_path: Path) -> None:
    """It compares what its source says of itself."""
    other = write_output(str(tmp_path), policy="no_delimiters", batch_bytes=3_000)  # the same rows in other bytes

    def loader(url: str) -> Any:
        source = RowSource(url)
        sampler = grain.IndexSampler(len(source), grain.NoSharding(), shuffle=True, num_epochs=1, seed=0)
        return iter(grain.DataLoader(data_source=source, sampler=sampler, worker_count=0))

    first = loader(output.url)
    next(first)
    state = first.get_state()
    again, elsewhere = loader(output.url), loader(other.url)
    again.set_state(state)
    assert same(next(again), next(first))
    with pytest.raises(ValueError, match="ource in checkpoint does not match"):
        elsewhere.set_state(state)


def test_corpora_are_mixed_by_weight(output: PackedOutput, tmp_path: Path) -> None:
    other = write_output(str(tmp_path), policy="no_delimiters", vocab_size=60_000)
    sources = [grain.MapDataset.source(RowSource(url, seed=0, epochs=9)) for url in (output.url, other.url)]
    mixed = grain.MapDataset.mix(sources, weights=[0.75, 0.25])
    first = {PackedDataset(output.url)[row]["input_ids"].tobytes() for row in range(len(output.rows("train")))}
    found = [mixed[number]["input_ids"].astype(np.int64).tobytes() in first for number in range(100)]
    assert sum(found) == 75


def test_many_threads_read_the_same(output: PackedOutput) -> None:
    """Grain reads with sixteen threads; what one keeps for the next must not mix with another's."""
    source = RowSource(output.url, seed=0, epochs=4)
    alone = [source[number]["input_ids"].tobytes() for number in range(len(source))]
    numbers = np.random.default_rng(0).permutation(len(source)).tolist()
    shared = RowSource(output.url, seed=0, epochs=4)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda number: shared[number]["input_ids"].tobytes(), numbers))
    assert found == [alone[number] for number in numbers]


def test_the_documented_lines_read_a_corpus(output: PackedOutput, capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).parent.parent / "docs" / "formats.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    (example,) = [block for block in blocks if "rows_taken = 0, 1, 0" in block]
    assert "path/to/output" in example
    exec(compile(example.replace("path/to/output", output.url), str(page), "exec"), {})
    labelled = len(PackedDataset(output.url, labelled_only=True))
    assert capsys.readouterr().out.count("(4, 64)") == 2 * labelled // 4


# --- ArrayRecord ------------------------------------------------------------------------------------------------------


def documented(word: str) -> str:
    """The block of Python of docs/formats.md that has a word in it."""
    page = Path(__file__).parent.parent / "docs" / "formats.md"
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL) if word in b]
    return str(block)


@pytest.mark.parametrize("policy", [None, "thoughts_only"])
def test_grains_own_reader_opens_the_export(output: PackedOutput, tmp_path: Path, policy: Any) -> None:
    """Record i of the files is row i, array by array."""
    export(output.url, "arrayrecord", str(tmp_path), loss_mask=policy)
    scope: dict[str, Any] = {}
    exec(documented("ArrayRecordDataSource(").replace("path/to/arrays", str(tmp_path)), scope)
    source = RowSource(output.url, loss_mask=policy)
    assert len(scope["files"]) == 3 and len(scope["rows"]) == len(source)
    for number in np.random.default_rng(0).permutation(len(source)).tolist():
        assert same(scope["rows"][number], source[number])


def test_a_record_is_the_message_that_tensorflow_knows(output: PackedOutput, tmp_path: Path) -> None:
    """By its wire format: features in a map under their names, each with its list of integers."""
    export(output.url, "arrayrecord", str(tmp_path), splits=["train"])
    (first, *_) = sorted(map(str, tmp_path.glob("train/*.array_record")))
    record = grain.ArrayRecordDataSource(first)[0]
    features = dict(feature_of(value) for value in fields(fields(record)[0][1]))
    row = output.rows("train")[0]
    assert set(features) == {"input_ids", "labels", "positions", "segment_ids", "loss_mask", "doc_ids"}
    number, packed = fields(features["input_ids"])[0]  # Feature.int64_list is 3, bytes_list is 1
    assert number == 3 and varints(fields(packed)[0][1]) == row.input_ids.tolist()
    number, listed = fields(features["doc_ids"])[0]
    assert number == 1 and [value.decode() for _, value in fields(listed)] == row.doc_ids


def fields(data: bytes) -> list[tuple[int, bytes]]:
    """The fields of a message that are all of the wire type 2: (number, bytes)."""
    found, at = [], 0
    while at < len(data):
        head, at = varint(data, at)
        assert head & 7 == 2
        size, at = varint(data, at)
        found.append((head >> 3, data[at : at + size]))
        at += size
    return found


def feature_of(entry: tuple[int, bytes]) -> tuple[str, bytes]:
    (_, key), (_, value) = fields(entry[1])
    return key.decode(), value


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 128:
            return value, at


def varints(data: bytes) -> list[int]:
    found, at = [], 0
    while at < len(data):
        value, at = varint(data, at)
        found.append(value)
    return found


def test_documents_are_exported_one_by_one(output: PackedOutput, tmp_path: Path) -> None:
    """As `DocumentSource` gives them; and packed by Grain as MaxText does, they come out whole, each a segment."""
    export(output.url, "arrayrecord_documents", str(tmp_path))
    files = sorted(map(str, tmp_path.glob("train/*.array_record")))
    records, source = grain.ArrayRecordDataSource(files), DocumentSource(output.url)
    assert len(records) == len(source)
    for number in range(len(source)):
        assert same(parse(records[number]), source[number])
    documents = grain.MapDataset.source(records).map(lambda record: {"inputs": parse(record)["input_ids"]})
    packed = FirstFitPackIterDataset(documents.to_iter_dataset(), length_struct={"inputs": 64}, num_packing_bins=8)
    found = Counter(
        tuple(row["inputs"][row["inputs_segment_ids"] == segment].tolist())
        for row in packed
        for segment in range(1, row["inputs_segment_ids"].max() + 1)
    )
    assert found == Counter(tuple(source[number]["input_ids"].tolist()) for number in range(len(source)))


def test_the_documented_mix_goes_on_at_another_world_size(output: PackedOutput, tmp_path: Path) -> None:
    """Bitwise: what eight ranks would have read from there on, three do."""
    other = write_output(str(tmp_path), policy="no_delimiters", vocab_size=60_000)
    lines = documented("MapDataset.mix(").replace("path/to/output/../demo", other.url)
    scope: dict[str, Any] = {}
    exec(lines.replace("path/to/output", output.url), scope)
    mixed = scope["mixed"]
    first = next(scope["batches"])
    assert all(
        np.array_equal(first[name], np.stack([mixed[4000 + 8 * step][name] for step in range(4)])) for name in first
    )
    ranks = [iter(mixed[rank::8].to_iter_dataset()) for rank in range(8)]
    taken = [next(rank) for _ in range(3) for rank in ranks]
    ranks = [iter(mixed[24 + rank :: 3].to_iter_dataset()) for rank in range(3)]
    taken += [next(rank) for _ in range(4) for rank in ranks]
    assert all(same(found, mixed[number]) for number, found in enumerate(taken))
    here = {PackedDataset(output.url)[row]["input_ids"].tobytes() for row in range(len(output.rows("train")))}
    of_first = [mixed[number]["input_ids"].astype(np.int64).tobytes() in here for number in range(400)]
    assert sum(of_first) == 300
