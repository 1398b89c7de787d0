"""`shards.dataset`: rows as they were packed, shards that are the manifest's, and batches that a model trains on."""

from __future__ import annotations

import itertools
import pickle
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.records.rows import Row, TokenType
from sharding.shards.dataset import PackedDataset, collate
from sharding.shards.mapped import MappedShard
from sharding.shards.rows import IGNORED_LABEL, LOSS_MASKS, loss_mask
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


# --- what a row holds -------------------------------------------------------------------------------------------------


def test_rows_are_those_of_the_shards(output: PackedOutput) -> None:
    stored = output.rows("train")
    read = list(PackedDataset(output.url))
    assert len(read) == len(stored)
    for row, original in zip(read, stored, strict=True):
        assert row["input_ids"].dtype == np.int64
        np.testing.assert_array_equal(row["input_ids"], original.input_ids)
        np.testing.assert_array_equal(row["token_type"], original.token_type)


def test_documents_begin_where_the_lengths_say(output: PackedOutput) -> None:
    padded = full = 0
    for row, original in zip(PackedDataset(output.url), output.rows("train"), strict=True):
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
    for row, original in zip(PackedDataset(output.url, loss_mask=policy), output.rows("train"), strict=True):
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
    of_corpus = PackedDataset(packed.url)
    assert of_corpus.loss_mask == policy and PackedDataset(output.url).loss_mask == "all"
    for asked in (None, *LOSS_MASKS):
        expected = [r["labels"].tolist() for r in PackedDataset(output.url, loss_mask=asked or policy)]
        assert [r["labels"].tolist() for r in PackedDataset(packed.url, loss_mask=asked)] == expected


def test_the_stored_mask_is_what_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = write_output(str(tmp_path), policy="thoughts_only")
    monkeypatch.setattr("sharding.shards.dataset.loss_mask", lambda *_: pytest.fail("the stored mask was not read"))
    assert any((row["labels"] != IGNORED_LABEL).any() for row in PackedDataset(packed.url))


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(RequestError, match="loss_mask: 'thoughts' is not one of all, source_only"):
        loss_mask(np.zeros(3, np.uint8), "thoughts")  # type: ignore[arg-type]


def test_wide_ids(tmp_path: Path) -> None:
    packed = write_output(str(tmp_path), vocab_size=150_000, documents=10)
    rows = list(PackedDataset(packed.url))
    assert max(int(row["input_ids"].max()) for row in rows) > 1 << 16
    assert keys(rows) == keys(packed.rows("train"))


# --- which rows there are ---------------------------------------------------------------------------------------------


def test_splits_are_apart(output: PackedOutput) -> None:
    assert set(keys(PackedDataset(output.url, "validation"))) == set(keys(output.rows("validation")))
    with pytest.raises(RequestError, match="split: 'test' is not one of train, validation"):
        PackedDataset(output.url, "test")


def test_a_split_without_rows_is_an_empty_dataset(tmp_path: Path) -> None:
    packed = write_output(str(tmp_path), documents=10, empty_split=True)
    dataset = PackedDataset(packed.url, "validation")
    assert list(dataset) == [] and len(dataset) == 0


def test_every_loop_over_a_dataset_gives_all_rows(output: PackedOutput) -> None:
    """A dataset that remembered a position gave all rows once, and none in later epochs."""
    dataset = PackedDataset(output.url)
    assert [keys(dataset) for _ in range(3)] == [keys(output.rows("train"))] * 3


def test_a_row_depends_on_its_number_alone(output: PackedOutput) -> None:
    stored, dataset = keys(output.rows("train")), PackedDataset(output.url)
    numbers = np.random.default_rng(0).permutation(len(stored))
    assert [key(dataset[number]) for number in numbers] == [stored[number] for number in numbers]


@pytest.mark.parametrize("outside", [-1, 10**6])
def test_a_row_that_is_not_there_is_an_error(output: PackedOutput, outside: int) -> None:
    dataset = PackedDataset(output.url)
    for row in (outside, len(dataset)):
        with pytest.raises(IndexError, match=f"row {row} is not one of 0 to {len(dataset) - 1} of the split train"):
            dataset[row]


@pytest.mark.parametrize("stored", [True, False])
def test_rows_without_a_label_can_be_left_out(tmp_path: Path, output: PackedOutput, stored: bool) -> None:
    """Under thoughts_only a mean over their labels is NaN: of rows of plain documents that is all of them."""
    packed = write_output(str(tmp_path), policy="thoughts_only") if stored else output
    everything = PackedDataset(packed.url, loss_mask="thoughts_only")
    labelled = PackedDataset(packed.url, loss_mask="thoughts_only", labelled_only=True)
    expected = [key(row) for row in everything if (row["labels"] != IGNORED_LABEL).any()]
    assert 0 < len(expected) < len(everything)
    assert keys(labelled) == expected and len(labelled) == len(expected)
    assert sum(labelled.rows_of_shards) == len(expected)
    entries = [e for e in manifest.require(packed.url, "pack").files["shards"] if "train" in e.name]
    if stored:
        assert sum(entry.unlabelled_rows for entry in entries) == len(everything) - len(expected)


def test_paths_are_taken_wherever_strings_are(output: PackedOutput) -> None:
    assert keys(PackedDataset(Path(output.url))) == keys(output.rows("train"))
    assert manifest.require(Path(output.url), "pack").stage == "pack"


def test_impossible_arguments_are_refused(output: PackedOutput) -> None:
    with pytest.raises(RequestError, match="loss_mask: 'some'"):
        PackedDataset(output.url, loss_mask="some")  # type: ignore[arg-type]
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
    with pytest.raises(MillError, match=rf"{name}: [0-9,]+ bytes, its manifest says"):
        PackedDataset(packed.url)[0]


def test_another_shard_of_as_many_rows_is_refused(tmp_path: Path) -> None:
    """Shards are equal by design: one in the place of another was read without a word."""
    packed = write_output(str(tmp_path))
    first, second = (tmp_path / "data" / f"train-{number:05d}-of-00003.arrow" for number in (0, 1))
    dataset = PackedDataset(packed.url)
    kept = first.read_bytes()
    assert len(dataset) and first.replace(tmp_path / "aside") and second.rename(first)
    with pytest.raises(MillError, match=r"train-00000-of-00003\.arrow: .* its manifest says .*another corpus"):
        dataset[0]
    first.write_bytes(kept)
    dataset[0]


def test_a_shard_is_recognised_each_time_it_is_opened(tmp_path: Path) -> None:
    """One that is changed after it was read for the first time, in the same length."""
    packed = write_output(str(tmp_path))
    dataset = PackedDataset(packed.url)
    list(dataset)
    shard = tmp_path / "data" / "train-00000-of-00003.arrow"
    wrong = bytearray(shard.read_bytes())
    wrong[len(wrong) // 2] ^= 1
    (tmp_path / "aside").write_bytes(wrong)
    (tmp_path / "aside").rename(shard)
    with pytest.raises(MillError, match="its bytes are not those of its manifest"):
        list(dataset)


def test_no_shard_is_opened_to_make_a_dataset(output: PackedOutput, monkeypatch: pytest.MonkeyPatch) -> None:
    """Making one must not cost a pass over the corpus."""
    monkeypatch.setattr(MappedShard, "__init__", lambda *_: pytest.fail("a shard was opened"))
    assert PackedDataset(output.url).rows == len(output.rows("train"))


def test_a_dataset_travels_to_another_process(output: PackedOutput) -> None:
    dataset = PackedDataset(output.url)
    dataset[0]
    copy = pickle.loads(pickle.dumps(dataset))  # noqa: S301
    assert keys(copy) == keys(output.rows("train"))


# --- torch ------------------------------------------------------------------------------------------------------------


def test_collate_joins_the_documents_of_a_batch(output: PackedOutput) -> None:
    rows = list(itertools.islice(PackedDataset(output.url), 3))
    batch = collate(rows)
    assert tuple(batch["input_ids"].shape) == tuple(batch["labels"].shape) == (3, 64)
    positions = batch["position_ids"].view(-1)
    begins = (positions == 0).nonzero().view(-1).tolist()
    assert batch["cu_seqlens"].tolist() == [*begins, 3 * 64]
    np.testing.assert_array_equal(batch["input_ids"].numpy(), np.stack([row["input_ids"] for row in rows]))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_datasets_shares_the_shards_over_ranks(
    output: PackedOutput, tmp_path: Path, world_size: int, streaming: bool
) -> None:
    """The other way to read: every row once over the ranks, with rows of padding where a takedown has left them."""
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
    (example,) = [block for block in blocks if "TinyModel" in block]
    assert "path/to/output" in example
    scope: dict[str, Any] = {}
    exec(compile(example.replace("path/to/output", output.url), str(FORMATS_PAGE), "exec"), scope)
    losses = [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", capsys.readouterr().out)]
    assert len(losses) == 20
    assert losses[-1] < losses[0]
    rows, state = scope["dataset"].rows, scope["checkpoint"]["data"]
    steps_of_an_epoch = -(-rows // 4)  # the last batch is a smaller one
    assert scope["step"] == 20 > steps_of_an_epoch
    assert (state["epoch"], state["row"]) == (1, (20 - steps_of_an_epoch) * 4)
