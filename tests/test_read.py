"""`shards.dataset`: every row once over all ranks and epochs, exact resume, and batches that a model trains on."""

from __future__ import annotations

import functools
import itertools
import json
import pickle
import re
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.records.rows import Row, TokenType
from sharding.shards.dataset import PackedDataset, collate
from sharding.shards.rows import IGNORED_LABEL, LOSS_MASKS, MappedShard, loss_mask
from sharding.storage import manifest
from tests.packed_output import PackedOutput, write_output

FORMATS_PAGE = Path(__file__).parent.parent / "docs" / "formats.md"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> PackedOutput:
    packed = write_output(str(tmp_path_factory.mktemp("output")))
    sizes = [len(shard) for shard in packed.shards["train"]]
    assert len(set(sizes)) == 2, "one shard should hold a padding row"
    assert sum(sizes) % 2 and sum(sizes) % 3 and sum(sizes) % 4, "ranks should not divide the rows"
    return packed


def key(row: dict[str, np.ndarray] | Row) -> bytes:
    ids = row["input_ids"] if isinstance(row, dict) else row.input_ids
    return ids.astype(np.int64).tobytes()


def keys(rows: Any) -> list[bytes]:
    return [key(row) for row in rows]


@functools.cache
def stream_keys(url: str, seed: int) -> list[bytes]:
    """The endless stream of one rank, as far as the tests go."""
    return keys(itertools.islice(PackedDataset(url, seed=seed, epochs=None), 180))


# --- what a row holds -------------------------------------------------------------------------------------------------


def test_rows_are_those_of_the_shards(output: PackedOutput) -> None:
    stored = output.rows("train")
    read = list(PackedDataset(output.url, shuffle=False))
    assert len(read) == len(stored)
    for row, original in zip(read, stored, strict=True):
        assert row["input_ids"].dtype == np.int64
        np.testing.assert_array_equal(row["input_ids"], original.input_ids)
        np.testing.assert_array_equal(row["token_type"], original.token_type)


def test_documents_begin_where_the_lengths_say(output: PackedOutput) -> None:
    padded = full = 0
    for row, original in zip(PackedDataset(output.url, shuffle=False), output.rows("train"), strict=True):
        lengths = original.seq_lengths.tolist()
        rest = 64 - sum(lengths)
        padded, full = padded + bool(rest), full + (not rest)
        lengths += [rest] if rest else []
        assert row["cu_seqlens"].tolist() == [0, *itertools.accumulate(lengths)]
        assert row["cu_seqlens"].dtype == np.int32
        assert row["position_ids"].tolist() == [i for length in lengths for i in range(length)]
    assert padded and full


@pytest.mark.parametrize("policy", LOSS_MASKS)
def test_labels_count_what_the_policy_counts(output: PackedOutput, policy: Any) -> None:
    kinds = {
        "all": {TokenType.SOURCE, TokenType.THOUGHT, TokenType.DELIMITER},
        "source_only": {TokenType.SOURCE},
        "thoughts_only": {TokenType.THOUGHT},
        "no_delimiters": {TokenType.SOURCE, TokenType.THOUGHT},
    }[policy]
    counted = 0
    for row, original in zip(
        PackedDataset(output.url, loss_mask=policy, shuffle=False), output.rows("train"), strict=True
    ):
        begins = {0, *np.cumsum(original.seq_lengths).tolist()}
        expected = [
            int(token) if kind in kinds and at not in begins else IGNORED_LABEL
            for at, (token, kind) in enumerate(zip(original.input_ids, original.token_type, strict=True))
        ]
        assert row["labels"].tolist() == expected
        counted += sum(label != IGNORED_LABEL for label in expected)
    assert counted


@pytest.mark.parametrize("policy", ["source_only", "no_delimiters"])
def test_the_mask_of_the_corpus_is_the_default(tmp_path: Path, output: PackedOutput, policy: Any) -> None:
    """Read from its column; another policy, when it is asked for, from the token types."""
    packed = write_output(str(tmp_path), policy=policy)
    of_corpus = PackedDataset(packed.url, shuffle=False)
    assert of_corpus.loss_mask == policy and PackedDataset(output.url).loss_mask == "all"
    for asked in (None, *LOSS_MASKS):
        expected = [r["labels"].tolist() for r in PackedDataset(output.url, loss_mask=asked or policy, shuffle=False)]
        assert [r["labels"].tolist() for r in PackedDataset(packed.url, loss_mask=asked, shuffle=False)] == expected


def test_the_stored_mask_is_what_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = write_output(str(tmp_path), policy="thoughts_only")
    monkeypatch.setattr("sharding.shards.dataset.loss_mask", lambda *_: pytest.fail("the stored mask was not read"))
    assert any((row["labels"] != IGNORED_LABEL).any() for row in PackedDataset(packed.url))


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(RequestError, match="loss_mask: 'thoughts' is not one of all, source_only"):
        loss_mask(np.zeros(3, np.uint8), "thoughts")  # type: ignore[arg-type]


def test_wide_ids(tmp_path: Path) -> None:
    packed = write_output(str(tmp_path), vocab_size=150_000, documents=10)
    rows = list(PackedDataset(packed.url, shuffle=False))
    assert max(int(row["input_ids"].max()) for row in rows) > 1 << 16
    assert keys(rows) == keys(packed.rows("train"))


# --- who sees what ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("epochs", [1, 3])
def test_ranks_share_every_epoch(output: PackedOutput, world_size: int, epochs: int) -> None:
    ranks = [
        list(PackedDataset(output.url, rank=rank, world_size=world_size, epochs=epochs)) for rank in range(world_size)
    ]
    lengths = [len(rank) for rank in ranks]
    assert max(lengths) - min(lengths) <= 1
    assert Counter(keys(itertools.chain(*ranks))) == {key(row): epochs for row in output.rows("train")}
    # Taken in turn, the ranks' rows are the rows of one rank alone, epoch after epoch.
    in_turn = [row for step in itertools.zip_longest(*ranks) for row in step if row is not None]
    assert keys(in_turn) == keys(PackedDataset(output.url, epochs=epochs))


def test_epochs_and_seeds_have_orders_of_their_own(output: PackedOutput) -> None:
    rows = len(output.rows("train"))
    stream = keys(PackedDataset(output.url, epochs=3))
    orders = [stream[i * rows : (i + 1) * rows] for i in range(3)]
    orders += [keys(PackedDataset(output.url, seed=1)), keys(PackedDataset(output.url, shuffle=False))]
    assert all(set(order) == set(orders[0]) for order in orders)
    assert len({tuple(order) for order in orders}) == len(orders)


def test_the_order_does_not_drift() -> None:
    """A run that is resumed with a later version must go on where it was: these values must never change."""
    dataset = object.__new__(PackedDataset)
    dataset._seed, dataset._shuffle = 7, True
    assert dataset._permutation(8, 2) == PINNED_ORDER
    assert dataset._permutation(8, 3) != PINNED_ORDER


PINNED_ORDER = [0, 3, 1, 7, 2, 5, 6, 4]


def test_splits_are_apart(output: PackedOutput) -> None:
    assert set(keys(PackedDataset(output.url, "validation"))) == set(keys(output.rows("validation")))
    with pytest.raises(RequestError, match="split: 'test' is not one of train, validation"):
        PackedDataset(output.url, "test")


def test_a_split_without_rows_is_an_empty_dataset(tmp_path: Path) -> None:
    packed = write_output(str(tmp_path), documents=10, empty_split=True)
    for epochs in (1, None):
        assert list(PackedDataset(packed.url, "validation", epochs=epochs)) == []


# --- resume -----------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(taken=st.integers(0, 30), before=st.integers(1, 5), after=st.integers(1, 5), seed=st.integers(0, 1))
def test_a_resumed_stream_goes_on_exactly(output: PackedOutput, taken: int, before: int, after: int, seed: int) -> None:
    """Also on another number of ranks, and over the end of an epoch."""
    whole = stream_keys(output.url, seed)
    states = []
    for rank in range(before):
        stream = PackedDataset(output.url, rank=rank, world_size=before, seed=seed, epochs=None)
        assert keys(itertools.islice(stream, taken)) == whole[rank : before * taken : before]
        states.append(json.loads(json.dumps(stream.state_dict())))
    assert all(state == states[0] for state in states)
    epoch, row = states[0]["epoch"], states[0]["row"]
    assert epoch * len(output.rows("train")) + row == before * taken
    for rank in range(after):
        resumed = PackedDataset(output.url, rank=rank, world_size=after, seed=seed, epochs=None)
        resumed.load_state_dict(states[0])
        started = PackedDataset(output.url, rank=rank, world_size=after, seed=seed, epochs=None, start=(epoch, row))
        expected = whole[before * taken + rank :: after][:5]
        assert keys(itertools.islice(resumed, 5)) == keys(itertools.islice(started, 5)) == expected


def test_a_loop_goes_on_where_the_last_one_stopped(output: PackedOutput) -> None:
    dataset = PackedDataset(output.url)
    first = keys(itertools.islice(dataset, 5))
    assert first + keys(dataset) == keys(PackedDataset(output.url))
    assert list(dataset) == []
    dataset.load_state_dict({**dataset.state_dict(), "epoch": 0, "row": 0})
    assert keys(itertools.islice(dataset, 5)) == first


@pytest.mark.parametrize("changed", [{"seed": 1}, {"shuffle": False}, {"split": "validation"}])
def test_a_state_of_another_order_is_refused(output: PackedOutput, changed: dict[str, Any]) -> None:
    state = PackedDataset(output.url).state_dict()
    other = PackedDataset(output.url, **changed)
    with pytest.raises(RequestError, match=f"{next(iter(changed))}: the state says"):
        other.load_state_dict(state)


def test_impossible_arguments_are_refused(output: PackedOutput) -> None:
    for arguments, message in [
        ({"rank": 2, "world_size": 2}, "rank: 2 is not one of 0 to world_size - 1 = 1"),
        ({"start": (0, 1_000)}, "start: epoch 0, row 1000"),
        ({"start": (-1, 0)}, "start: epoch -1"),
        ({"loss_mask": "some"}, "loss_mask: 'some'"),
    ]:
        with pytest.raises(RequestError, match=message):
            PackedDataset(output.url, **arguments)
    with pytest.raises(RequestError, match="memory://somewhere is not on a file system"):
        PackedDataset("memory://somewhere")
    with pytest.raises(MillError, match=r"MANIFEST\.json is missing"):
        PackedDataset(output.url + "/data")


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_truncated_shard_is_refused(tmp_path: Path) -> None:
    packed = write_output(str(tmp_path), documents=80, train_shards=1)
    name = manifest.require(packed.url, "pack").files["shards"][0].name
    batches = list(storage.read_batches(storage.join(packed.url, name)))
    assert len(batches) > 1
    with pa.OSFile(str(tmp_path / name), "wb") as sink, pa.ipc.new_stream(sink, batches[0].schema) as writer:
        writer.write_batch(batches[0])
    with pytest.raises(MillError, match=rf"{name}: {batches[0].num_rows} rows, its manifest says"):
        PackedDataset(packed.url)[0]


def test_only_shards_with_padding_are_looked_into(output: PackedOutput, monkeypatch: pytest.MonkeyPatch) -> None:
    """Making a dataset must not cost a pass over a corpus whose shards can't hold padding rows."""
    packed = manifest.require(output.url, "pack")
    unpadded = [
        msgspec.structs.replace(entry, tokens={**entry.tokens, "padding": 63}) for entry in packed.files["shards"]
    ]
    monkeypatch.setattr(manifest, "require", lambda *_: msgspec.structs.replace(packed, files={"shards": unpadded}))
    monkeypatch.setattr(MappedShard, "__init__", lambda *_: pytest.fail("a shard was opened"))
    assert PackedDataset(output.url).rows == sum(e.rows for e in unpadded if "train" in e.name)


def test_a_dataset_travels_to_another_process(output: PackedOutput) -> None:
    dataset = PackedDataset(output.url)
    first = keys(itertools.islice(dataset, 3))
    copy = pickle.loads(pickle.dumps(dataset))  # noqa: S301
    assert first + keys(copy) == keys(PackedDataset(output.url))


# --- torch ------------------------------------------------------------------------------------------------------------


def test_collate_joins_the_documents_of_a_batch(output: PackedOutput) -> None:
    rows = list(itertools.islice(PackedDataset(output.url), 3))
    batch = collate(rows)
    assert tuple(batch["input_ids"].shape) == tuple(batch["labels"].shape) == (3, 64)
    positions = batch["position_ids"].view(-1)
    begins = (positions == 0).nonzero().view(-1).tolist()
    assert batch["cu_seqlens"].tolist() == [*begins, 3 * 64]
    np.testing.assert_array_equal(batch["input_ids"].numpy(), np.stack([row["input_ids"] for row in rows]))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_keeps_the_order(output: PackedOutput, workers: int) -> None:
    from torch.utils.data import DataLoader

    dataset = PackedDataset(output.url, rank=1, world_size=2)
    loader = DataLoader(dataset, batch_size=4, num_workers=workers, collate_fn=collate)
    read = [row.numpy().tobytes() for batch in loader for row in batch["input_ids"]]
    assert read == keys(PackedDataset(output.url, rank=1, world_size=2))
    assert len(read) == len(dataset)
    state = dataset.state_dict(rows_taken=8)
    assert (state["epoch"], state["row"]) == (0, 16)
    with pytest.raises(TypeError, match="give it epochs"):
        len(PackedDataset(output.url, epochs=None))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_datasets_shares_the_shards_over_ranks(
    output: PackedOutput, tmp_path: Path, world_size: int, streaming: bool
) -> None:
    """The other way to read: every row once over the ranks, rows of padding included, which keep shards equal."""
    from datasets import load_dataset
    from datasets.distributed import split_dataset_by_node

    files = {"train": f"{output.url}/data/train-*.arrow"}
    opened = load_dataset("arrow", data_files=files, split="train", streaming=streaming, cache_dir=str(tmp_path))
    ranks = [list(split_dataset_by_node(opened, rank, world_size)) for rank in range(world_size)]
    stored = Counter(tuple(row.input_ids.tolist()) for row in output.rows("train"))
    padding_rows = sum(len(output.shards["train"][0]) - len(shard) for shard in output.shards["train"])
    read = Counter(tuple(row["input_ids"]) for rank in ranks for row in rank)
    assert read == stored + Counter({(0,) * 64: padding_rows})
    lengths = [len(rank) for rank in ranks]
    assert max(lengths) - min(lengths) <= (0 if world_size == 3 else 1)


def test_the_documented_example_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = write_output(str(tmp_path), vocab_size=500)
    blocks = re.findall(r"```python\n(.*?)```", FORMATS_PAGE.read_text(), re.DOTALL)
    (example,) = [block for block in blocks if "PackedDataset(" in block]
    assert "path/to/output" in example
    scope: dict[str, Any] = {}
    exec(compile(example.replace("path/to/output", output.url), str(FORMATS_PAGE), "exec"), scope)
    losses = [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", capsys.readouterr().out)]
    assert len(losses) == 20
    assert losses[-1] < losses[0]
    assert scope["dataset"].state_dict()["row"] == 20 * 4 % len(output.rows("train"))
