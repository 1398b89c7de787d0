"""Exports open in the trainers' own readers, with every token and boundary where it was.

The readers of Megatron-Core, datatrove and datasets are used as they are. Those of mosaicml-streaming, OLMo-core and
TRL pin versions that this project can't share: small readers here follow the formats' descriptions, and the real ones
run in `tests/test_trainers.py`, in places of their own.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import re
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.records.rows import Row, TokenType
from sharding.shards.export import FORMATS, arrayrecord, export, mds
from sharding.shards.export.hub import published_names, upload
from sharding.shards.export.megatron import token_dtype
from sharding.shards.export.target import BEGUN_NAME, EXPORT_NAME, Export, read
from sharding.shards.rows import LOSS_MASKS, LossMask
from sharding.storage import manifest
from tests.packed_output import FINGERPRINT, PackedOutput, write_output

L = 64
VOCABULARIES = {"16-bit": 50_000, "between": 65_520, "32-bit": 150_000}
WITH_LOSS_MASK = [name for name, form in FORMATS.items() if form.carries_loss_mask]
COUNTED: dict[LossMask, set[TokenType]] = {
    "all": {TokenType.SOURCE, TokenType.THOUGHT, TokenType.DELIMITER},
    "source_only": {TokenType.SOURCE},
    "thoughts_only": {TokenType.THOUGHT},
    "no_delimiters": {TokenType.SOURCE, TokenType.THOUGHT},
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PackedOutput]:
    return {
        name: write_output(str(tmp_path_factory.mktemp(name)), vocab_size=vocab_size)
        for name, vocab_size in VOCABULARIES.items()
    }


@pytest.fixture(scope="module")
def output(outputs: dict[str, PackedOutput]) -> PackedOutput:
    return outputs["16-bit"]


def spans(rows: Sequence[Row]) -> list[tuple[Row, slice]]:
    """Every item of the rows, as its row and its place in it."""
    found = []
    for row in rows:
        ends = np.cumsum(row.seq_lengths).tolist()
        found += [(row, slice(begin, end)) for begin, end in zip([0, *ends], ends, strict=False)]
    return found


def documents(rows: Sequence[Row]) -> list[list[int]]:
    return [row.input_ids[span].tolist() for row, span in spans(rows)]


def masks(rows: Sequence[Row], policy: LossMask) -> list[list[bool]]:
    """The expected mask of every row, padding included."""
    return [[kind in COUNTED[policy] for kind in row.token_type.tolist()] for row in rows]


def page_rows() -> dict[str, tuple[str, str]]:
    """Of each format, what docs/formats.md says of padding and of the loss mask."""
    page = (Path(__file__).parent.parent / "docs" / "formats.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| `(\w+)` \| (?:item|row) \|[^|]+\| ([^|]+) \| ([^|]+) \|", page, re.MULTILINE)
    return {name: (padding, mask) for name, padding, mask in found}


def files(target: Path, pattern: str) -> list[Path]:
    return sorted(target.glob(pattern))


# --- by document ------------------------------------------------------------------------------------------------------


def read_megatron(prefix: Path) -> tuple[np.dtype, list[list[int]]]:
    """The documents, by the published layout."""
    index = prefix.with_suffix(".idx").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    version, code, sequences, marks = struct.unpack_from("<QBQQ", index, 9)
    assert version == 1
    dtype = np.dtype({4: "<i4", 8: "<u2"}[code])
    lengths = np.frombuffer(index, "<i4", sequences, 34)
    offsets = np.frombuffer(index, "<i8", sequences, 34 + 4 * sequences)
    assert np.frombuffer(index, "<i8", marks, 34 + 12 * sequences).tolist() == list(range(sequences + 1))
    assert len(index) == 34 + 12 * sequences + 8 * marks
    ids = prefix.with_suffix(".bin").read_bytes()
    assert len(ids) == lengths.sum() * dtype.itemsize
    return dtype, [
        np.frombuffer(ids, dtype, length, offset).tolist() for length, offset in zip(lengths, offsets, strict=True)
    ]


@pytest.mark.parametrize(("name", "dtype"), [("16-bit", "<u2"), ("between", "<i4"), ("32-bit", "<i4")])
def test_megatron_by_its_layout(outputs: dict[str, PackedOutput], tmp_path: Path, name: str, dtype: str) -> None:
    output = outputs[name]
    export(output.url, "megatron", str(tmp_path))
    for split, shards in output.shards.items():
        prefixes = [path.with_suffix("") for path in files(tmp_path, f"{split}/*.idx")]
        assert len(prefixes) == len(shards)
        for prefix, shard in zip(prefixes, shards, strict=True):
            assert read_megatron(prefix) == (np.dtype(dtype), documents(shard))


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_499, "<u2"), (65_500, "<i4"), (65_536, "<i4")])
def test_megatron_changes_ids_at_its_own_size(vocab_size: int, dtype: str) -> None:
    assert token_dtype(vocab_size) == dtype


@pytest.mark.slow
@pytest.mark.parametrize("name", ["16-bit", "between"])
def test_megatron_opens_it(outputs: dict[str, PackedOutput], tmp_path: Path, name: str) -> None:
    from megatron.core.datasets.indexed_dataset import DType, IndexedDataset

    output = outputs[name]
    export(output.url, "megatron", str(tmp_path))
    for number, shard in enumerate(output.shards["train"]):
        dataset = IndexedDataset(str(tmp_path / f"train/train-{number:05d}-of-00003"))
        assert dataset.index.dtype is DType.optimal_dtype(VOCABULARIES[name])
        assert [dataset[i].tolist() for i in range(len(dataset))] == documents(shard)
        assert dataset.document_indices.tolist() == list(range(len(dataset) + 1))


@pytest.mark.parametrize("name", ["16-bit", "32-bit"])
def test_datatrove_opens_it(outputs: dict[str, PackedOutput], tmp_path: Path, name: str) -> None:
    from datatrove.utils.dataset import DatatroveFileDataset, DatatroveFolderDataset

    output, token_size = outputs[name], 2 if name == "16-bit" else 4
    export(output.url, "datatrove", str(tmp_path))
    for number, shard in enumerate(output.shards["train"]):
        path = tmp_path / f"train/train-{number:05d}-of-00003.ds"
        expected = documents(shard)
        tokens = sum(map(len, expected))
        # One sequence that is the whole file: the reader takes one token more than a sequence has.
        dataset = DatatroveFileDataset(str(path), tokens - 1, token_size=token_size, return_positions=True)
        assert len(dataset) == 1
        assert dataset[0]["input_ids"].tolist() == [token for document in expected for token in document]
        assert dataset[0]["positions"].tolist() == [at for document in expected for at in range(len(document))]
        lines = Path(f"{path}.metadata").read_text().splitlines()
        assert lines[:2] == [f"acme/tokenizer|{token_size}", str(tokens)]
    folder = DatatroveFolderDataset(str(tmp_path / "train"), 9, filename_pattern="*.ds", token_size=token_size)
    assert len(folder.files) == 3
    assert len(folder) == sum(sum(map(len, documents(shard))) // 10 for shard in output.shards["train"])


@pytest.mark.parametrize("policy", LOSS_MASKS)
def test_datatrove_by_its_layout(output: PackedOutput, tmp_path: Path, policy: LossMask) -> None:
    export(output.url, "datatrove", str(tmp_path), loss_mask=policy)
    for path, shard in zip(files(tmp_path, "train/*.ds"), output.shards["train"], strict=True):
        expected = documents(shard)
        assert np.fromfile(path, "<u2").tolist() == [token for document in expected for token in document]
        assert np.fromfile(f"{path}.index", "<u8").tolist() == np.cumsum([len(d) for d in expected]).tolist()
        counted = [kind in COUNTED[policy] for row, span in spans(shard) for kind in row.token_type[span].tolist()]
        assert np.fromfile(f"{path}.loss", "?").tolist() == counted
    assert len({len(set(np.fromfile(path, "?").tolist())) for path in files(tmp_path, "train/*.loss")}) == 1


def test_datatrove_without_a_mask_has_none(output: PackedOutput, tmp_path: Path) -> None:
    export(output.url, "datatrove", str(tmp_path))
    assert not files(tmp_path, "**/*.loss")


# --- by row -----------------------------------------------------------------------------------------------------------


def read_mds(folder: Path) -> list[dict[str, np.ndarray]]:
    """The samples of a split, by the published layout."""
    index = json.loads((folder / "index.json").read_text())
    assert index["version"] == 2
    samples = []
    for shard in index["shards"]:
        data = (folder / shard["raw_data"]["basename"]).read_bytes()
        assert len(data) == shard["raw_data"]["bytes"]
        assert hashlib.sha256(data).hexdigest() == shard["raw_data"]["hashes"]["sha256"]
        assert (shard["format"], shard["version"], shard["zip_data"]) == ("mds", 2, None)
        assert shard["column_names"] == sorted(shard["column_names"])
        (count,) = struct.unpack_from("<I", data)
        assert count == shard["samples"]
        offsets = struct.unpack_from(f"<{count + 1}I", data, 4)
        assert offsets[-1] == len(data)
        assert json.loads(data[4 * (count + 2) : offsets[0]])["column_names"] == shard["column_names"]
        samples += [_mds_sample(data[a:b], shard) for a, b in itertools.pairwise(offsets)]
    return samples


def _mds_sample(data: bytes, shard: dict[str, Any]) -> dict[str, np.ndarray]:
    at, sizes, sample = 0, [], {}
    for size in shard["column_sizes"]:
        if size is None:
            (size,) = struct.unpack_from("<I", data, at)
            at += 4
        sizes.append(size)
    for name, encoding, size in zip(shard["column_names"], shard["column_encodings"], sizes, strict=True):
        kind, dtype, *shape = encoding.split(":")
        assert kind == "ndarray"
        value = data[at : at + size]
        at += size
        if not shape:  # one byte of axes and width, then the shape
            width = 1 << (value[0] & 3)
            assert value[0] >> 2 == 1
            shape = [int.from_bytes(value[1 : 1 + width], "little")]
            value = value[1 + width :]
        sample[name] = np.frombuffer(value, dtype).reshape([int(n) for n in shape])
    assert at == len(data)
    return sample


def check_mds(samples: Sequence[dict[str, Any]], rows: Sequence[Row], policy: LossMask | None) -> None:
    assert len(samples) == len(rows)
    for sample, row, mask in zip(samples, rows, masks(rows, policy or "all"), strict=True):
        assert sample["tokens"].dtype == np.int32
        assert sample["tokens"].tolist() == row.input_ids.tolist()
        assert sample["token_type"].tolist() == row.token_type.tolist()
        assert sample["seq_lengths"].tolist() == row.seq_lengths.tolist()
        if policy is None:
            assert "loss_mask" not in sample
        else:
            assert sample["loss_mask"].astype(bool).tolist() == mask


@pytest.mark.parametrize("policy", [None, *LOSS_MASKS])
def test_mds_by_its_layout(
    output: PackedOutput, tmp_path: Path, policy: LossMask | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mds, "FILE_BYTES", 2_000)
    export(output.url, "mds", str(tmp_path), loss_mask=policy)
    for split in output.shards:
        check_mds(read_mds(tmp_path / split), output.rows(split), policy)
    assert len(files(tmp_path, "train/*.mds")) > 2 * len(output.shards["train"])


def test_mds_rows_of_many_items(tmp_path: Path) -> None:
    """The shape of seq_lengths takes two bytes from 256 items on."""
    output = write_output(str(tmp_path / "output"), sequence_length=4_000, documents=900, train_shards=1)
    assert max(len(row.seq_lengths) for row in output.rows("train")) > 256
    export(output.url, "mds", str(tmp_path / "mds"))
    check_mds(read_mds(tmp_path / "mds/train"), output.rows("train"), None)


@pytest.mark.parametrize("name", ["16-bit", "32-bit"])
@pytest.mark.parametrize("policy", [None, "thoughts_only"])
def test_olmo_by_its_layout(
    outputs: dict[str, PackedOutput], tmp_path: Path, name: str, policy: LossMask | None
) -> None:
    output, dtype = outputs[name], "<u2" if name == "16-bit" else "<u4"
    export(output.url, "olmo", str(tmp_path), loss_mask=policy)
    for split, shards in output.shards.items():
        for number, shard in enumerate(shards):
            stem = f"{split}-{number:05d}-of-{len(shards):05d}.npy"
            ids = np.fromfile(tmp_path / split / "tokens" / stem, dtype).reshape(-1, L)
            mask = np.fromfile(tmp_path / split / "label_mask" / stem, "?").reshape(-1, L)
            assert ids.tolist() == [row.input_ids.tolist() for row in shard]
            assert mask.tolist() == masks(shard, policy or "all")


@pytest.mark.parametrize("policy", [None, "all", "source_only"])
def test_datasets_opens_the_parquet(output: PackedOutput, tmp_path: Path, policy: LossMask | None) -> None:
    from datasets import load_dataset

    export(output.url, "parquet", str(tmp_path / "target"), loss_mask=policy)
    opened = load_dataset(str(tmp_path / "target"), cache_dir=str(tmp_path / "cache"))
    assert set(opened) == set(output.shards)
    for split in output.shards:
        rows = output.rows(split)
        expected_masks = masks(rows, policy or "all")
        assert len(opened[split]) == len(rows)
        for read_row, row, mask in zip(opened[split], rows, expected_masks, strict=True):
            tokens = int(row.seq_lengths.sum())
            ids = row.input_ids[:tokens].tolist()
            expected = {
                "input_ids": ids,
                "token_type": row.token_type[:tokens].tolist(),
                "seq_lengths": row.seq_lengths.tolist(),
                "doc_ids": row.doc_ids,
            }
            if policy is not None:
                expected["labels"] = [i if counts else -100 for i, counts in zip(ids, mask, strict=False)]
            assert read_row == expected


def test_parquet_row_groups_are_bounded(output: PackedOutput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as pq

    from sharding.shards.export import parquet

    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 1)
    export(output.url, "parquet", str(tmp_path), splits=["train"])
    shard = manifest.require(output.url, "pack").files["shards"][0]
    batches = [b.num_rows for b in storage.read_batches(storage.join(output.url, shard.name))]
    metadata = pq.ParquetFile(files(tmp_path, "train/*.parquet")[0]).metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == batches
    assert len(batches) > 1


# --- what every format owes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", FORMATS)
def test_the_manifest_tells_every_file(output: PackedOutput, tmp_path: Path, fmt: str) -> None:
    done, written = export(output.url, fmt, str(tmp_path))
    assert written
    on_disk = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    entries = {entry.name: entry for entries in done.files.values() for entry in entries}
    assert on_disk == {EXPORT_NAME, *entries}
    for name, entry in entries.items():
        data = (tmp_path / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry.size_bytes, entry.sha256), name
    rows = output.rows("train") + output.rows("validation")
    kinds = np.bincount(np.concatenate([row.token_type for row in rows]), minlength=len(TokenType))
    expected = {kind.name.lower(): int(kinds[kind]) for kind in TokenType}
    if page_rows()[fmt][0] != "kept":
        del expected["padding"]
    assert done.tokens == expected
    assert (done.source_fingerprint, done.rehearsal, done.document_end_ids) == (FINGERPRINT, True, [49_999])
    assert read(str(tmp_path)) == done


@pytest.mark.parametrize("fmt", FORMATS)
def test_any_number_of_workers_writes_the_same(output: PackedOutput, tmp_path: Path, fmt: str) -> None:
    seen: list[tuple[int, int, int]] = []
    alone, _ = export(output.url, fmt, str(tmp_path / "1"), workers=1, progress=lambda *done: seen.append(done))
    together, _ = export(output.url, fmt, str(tmp_path / "3"), workers=3)
    assert alone == together
    assert [(done, of) for done, of, _ in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert seen[-1][2] == sum(int(row.seq_lengths.sum()) for split in output.shards for row in output.rows(split))


@pytest.mark.parametrize("fmt", FORMATS)
def test_from_and_to_an_object_store(output: PackedOutput, tmp_path: Path, fmt: str) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(output.url, "/source", recursive=True)
    try:
        remote, _ = export("memory://source", fmt, "memory://target")
        local, _ = export(output.url, fmt, str(tmp_path))
        assert remote == local
        for entry in (entry for entries in remote.files.values() for entry in entries):
            assert memory.cat_file(f"/target/{entry.name}") == (tmp_path / entry.name).read_bytes()
    finally:
        memory.rm("/", recursive=True)


@pytest.mark.parametrize("fmt", WITH_LOSS_MASK)
def test_the_mask_of_the_corpus_goes_with_it(output: PackedOutput, tmp_path: Path, fmt: str) -> None:
    masked = write_output(str(tmp_path / "masked"), policy="thoughts_only")
    of_corpus, _ = export(masked.url, fmt, str(tmp_path / "of corpus"))
    asked, _ = export(output.url, fmt, str(tmp_path / "asked"), loss_mask="thoughts_only")
    assert of_corpus.loss_mask == asked.loss_mask == "thoughts_only"
    assert of_corpus.files == asked.files
    other, _ = export(masked.url, fmt, str(tmp_path / "all"), loss_mask="all")
    assert other.loss_mask == "all" and other.files != asked.files


def test_a_mask_is_not_lost_on_the_way_to_megatron(output: PackedOutput, tmp_path: Path) -> None:
    masked = write_output(str(tmp_path / "masked"), policy="source_only")
    with pytest.raises(RequestError, match=r"no place for the mask source_only; .*ask for all"):
        export(masked.url, "megatron", str(tmp_path / "target"))
    with pytest.raises(RequestError, match="no place for the mask thoughts_only"):
        export(masked.url, "megatron", str(tmp_path / "target"), loss_mask="thoughts_only")
    done, _ = export(masked.url, "megatron", str(tmp_path / "target"), loss_mask="all")
    plain, _ = export(output.url, "megatron", str(tmp_path / "plain"))
    assert done.files == plain.files and done.loss_mask is plain.loss_mask is None
    # What its files mean is `all`, asked for or not.
    assert export(output.url, "megatron", str(tmp_path / "plain"), loss_mask="all") == (plain, False)


def test_a_second_export_writes_nothing(output: PackedOutput, tmp_path: Path) -> None:
    first, _ = export(output.url, "olmo", str(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert export(output.url, "olmo", str(tmp_path)) == (first, False)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_an_export_that_lost_a_file_is_made_again(output: PackedOutput, tmp_path: Path) -> None:
    first, _ = export(output.url, "olmo", str(tmp_path))
    lost = tmp_path / first.files["train"][0].name
    lost.unlink()
    assert export(output.url, "olmo", str(tmp_path)) == (first, True)
    assert lost.exists()


def test_another_export_is_only_replaced_on_request(output: PackedOutput, tmp_path: Path) -> None:
    export(output.url, "mds", str(tmp_path))
    for arguments in ({"fmt": "parquet"}, {"fmt": "mds", "loss_mask": "all"}, {"fmt": "mds", "splits": ["train"]}):
        with pytest.raises(RequestError, match=r"holds another export \(mds, loss mask None"):
            export(output.url, target=str(tmp_path), **arguments)
    done, _ = export(output.url, "parquet", str(tmp_path), splits=["train"], replace=True)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {
        EXPORT_NAME,
        *(Path(entry.name).name for entry in done.files["train"]),
    }


class Killed(BaseException):
    """Ends an export in its middle; what has been written stays."""


def kill(done: int, *_: int) -> None:
    raise Killed


@pytest.mark.parametrize("fmt", FORMATS)
def test_what_a_killed_export_has_left_is_gone(output: PackedOutput, tmp_path: Path, fmt: str) -> None:
    """Of another corpus, of more shards: a reader of the folder would take them all."""
    other = write_output(str(tmp_path / "other"), documents=80, train_shards=5)
    target = tmp_path / "target"
    with pytest.raises(Killed):
        export(other.url, fmt, str(target), workers=1, progress=kill)
    begun = target / "train" / f".train-00004-of-00005.x.{'0' * 32}.tmp"
    begun.parent.mkdir(exist_ok=True)
    begun.write_bytes(b"x")
    left = [path for path in target.rglob("train-*-of-00005*") if path.is_file()]
    assert left and read(str(target)) is None
    with pytest.raises(RequestError, match="holds an unfinished part of another export"):
        export(output.url, fmt, str(target))
    done, _ = export(output.url, fmt, str(target), replace=True)
    there = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert there == {EXPORT_NAME, *(entry.name for entries in done.files.values() for entry in entries)}
    # The same export goes on without a word.
    (target / EXPORT_NAME).rename(target / BEGUN_NAME)
    assert export(output.url, fmt, str(target)) == (done, True)
    assert not (target / BEGUN_NAME).exists()


def test_what_ends_an_export_is_not_hidden_by_what_it_leaves(
    output: PackedOutput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(arrayrecord, "_write", raise_killed)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(Killed):
        export(output.url, "arrayrecord", str(tmp_path / "target"), workers=1)


def raise_killed(*_: object) -> None:
    raise Killed


def test_a_killed_replacement_is_no_export(output: PackedOutput, tmp_path: Path) -> None:
    target = str(tmp_path / "target")
    export(output.url, "mds", target)
    with pytest.raises(Killed):
        export(output.url, "parquet", target, replace=True, workers=1, progress=kill)
    assert read(target) is None and not list(tmp_path.rglob("*.mds"))
    with pytest.raises(RequestError, match=r"unfinished part of another export \(parquet"):
        export(output.url, "mds", target)


@pytest.mark.parametrize("name", ["notes.txt", "train/mine.bin", "data/train-00000-of-00001.arrow", "train/link"])
def test_what_no_export_has_written_is_never_removed(output: PackedOutput, tmp_path: Path, name: str) -> None:
    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "train-00000-of-00003.bin").write_text("mine")

    def put() -> None:
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == "train/link":
            path.symlink_to(elsewhere)
        else:
            path.write_text("mine")

    for before in (None, "mds"):
        if before:
            export(output.url, before, str(target))
        put()
        with pytest.raises(RequestError, match=f"holds {name}, which no export has written"):
            export(output.url, "megatron", str(target), replace=True)
        assert (target / name).exists() and (elsewhere / "train-00000-of-00003.bin").read_text() == "mine"
        (target / name).unlink()
    assert read(str(target)) is not None


def test_an_export_that_names_files_elsewhere_removes_none(output: PackedOutput, tmp_path: Path) -> None:
    target, secret = tmp_path / "target", tmp_path / "secret"
    export(output.url, "mds", str(target))
    secret.write_text("mine")
    said = json.loads((target / EXPORT_NAME).read_text())
    said["files"]["train"][0]["name"] = "../secret"
    (target / EXPORT_NAME).write_text(json.dumps(said))
    with pytest.raises(MillError, match=r"'\.\./secret' is no name of a file"):
        export(output.url, "parquet", str(target), replace=True)
    assert secret.read_text() == "mine" and list(target.rglob("*.mds"))


@pytest.mark.parametrize(
    "spelled",
    [
        *("{out}", "{out}/", "{out}//", "./out", "out", "out/.", "file://{out}", "link", "out/../out"),
        *("out/data", "out/data/", "link/data", "out/new/deeper"),
    ],
)
def test_the_output_itself_is_no_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelled: str) -> None:
    write_output(str(tmp_path / "out"), documents=30, train_shards=1)
    (tmp_path / "link").symlink_to(tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for output in ("out", str(tmp_path / "out"), f"file://{tmp_path}/out", "link"):
        with pytest.raises(RequestError, match="is the output itself, or a part of it"):
            export(output, "parquet", spelled.format(out=tmp_path / "out"))
    with pytest.raises(RequestError, match=r"target: \. holds the output"):
        export("out", "parquet", ".")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fmt": "tfrecord"}, "format: 'tfrecord' is not one of arrayrecord, arrayrecord_documents, megatron"),
        ({"loss_mask": "thoughts"}, "loss_mask: 'thoughts' is not one of all, source_only"),
        (
            {"fmt": "megatron", "loss_mask": "source_only"},
            "loss_mask: megatron has no place for the mask source_only; these have: arrayrecord, ",
        ),
        ({"splits": ["train", "test"]}, "splits: 'test' is not one of train, validation"),
        ({"workers": 0}, "workers: 0"),
        ({"target": "{output}/"}, "is the output itself"),
    ],
)
def test_what_is_not_allowed_is_named(
    output: PackedOutput, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    request = {"fmt": "parquet", "target": str(tmp_path), **arguments}
    request["target"] = request["target"].replace("{output}", output.url)
    with pytest.raises(RequestError, match=message):
        export(output.url, **request)
    assert not any(tmp_path.iterdir())


def test_the_page_has_every_format_and_says_whether_it_has_a_mask() -> None:
    masks = {name: mask != "no" for name, (_, mask) in page_rows().items()}
    assert masks == {name: form.carries_loss_mask for name, form in FORMATS.items()}


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_damaged_shard_is_not_exported(tmp_path: Path, fmt: str) -> None:
    output = write_output(str(tmp_path / "output"), documents=30, train_shards=2)
    shard = files(tmp_path, "output/data/train-00001-*.arrow")[0]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(MillError, match=r"train-00001-of-00002\.arrow: its bytes are not those of its manifest"):
        export(output.url, fmt, str(tmp_path / "target"), workers=1)
    left = [path for path in (tmp_path / "target").rglob("*") if path.is_file()]
    assert not [path for path in left if "train-00001" in path.name or path.name == EXPORT_NAME or ".tmp" in path.name]


@pytest.mark.parametrize("fmt", FORMATS)
def test_shards_that_lie_are_not_exported(tmp_path: Path, fmt: str) -> None:
    """Bytes as the manifest says, but not the tokens: a manifest of another run."""
    output = write_output(str(tmp_path / "output"), documents=30, train_shards=1)
    path = tmp_path / "output" / manifest.MANIFEST_NAME
    said = json.loads(path.read_text())
    said["files"]["shards"][0]["tokens"]["source"] += 1
    path.write_text(json.dumps(said))
    with pytest.raises(MillError, match="holds tokens"):
        export(output.url, fmt, str(tmp_path / "target"))
    assert read(str(tmp_path / "target")) is None


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_split_without_documents_has_no_files(tmp_path: Path, fmt: str) -> None:
    output = write_output(str(tmp_path / "output"), documents=30, train_shards=1, empty_split=True)
    done, _ = export(output.url, fmt, str(tmp_path / "target"))
    assert list(done.files) == ["train"]
    assert done.splits == ["train", "validation"]


def test_an_unfinished_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MillError, match="run `thoughtmill pack` first"):
        export(str(tmp_path), "parquet", str(tmp_path / "target"))


# --- the hub ----------------------------------------------------------------------------------------------------------


class FakeHub:
    """Takes what the client's methods take, and keeps it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def create_repo(self, repo_id: str, **arguments: Any) -> str:
        self._keep("create_repo", {"repo_id": repo_id, **arguments})
        return f"https://hub/{repo_id}"

    def upload_folder(self, **arguments: Any) -> None:
        self._keep("upload_folder", arguments)

    def _keep(self, name: str, arguments: dict[str, Any]) -> None:
        import inspect

        from huggingface_hub import HfApi

        inspect.signature(getattr(HfApi, name)).bind(None, **arguments)
        self.calls.append((name, arguments))


def test_the_hub_gets_what_the_manifest_names(tmp_path: Path) -> None:
    from huggingface_hub.utils import filter_repo_objects

    output = write_output(str(tmp_path), documents=30, train_shards=2)
    strays = ("data/train-00000-of-00009.arrow", ".config.yaml.tmp", "notes.txt")
    for name in ("README.md", "stages/augment/ledger.arrow", *strays):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    hub = FakeHub()
    assert upload(output.url, "acme/corpus", api=hub) == "https://hub/acme/corpus"  # type: ignore[arg-type]
    (created, create), (uploaded, folder) = hub.calls
    assert (created, create["repo_type"], create["private"], create["exist_ok"]) == (
        "create_repo",
        "dataset",
        True,
        True,
    )
    assert (uploaded, folder["repo_type"], folder["folder_path"]) == ("upload_folder", "dataset", output.url)
    there = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    sent = set(filter_repo_objects(there, allow_patterns=folder["allow_patterns"]))
    assert sent == {
        "README.md", "MANIFEST.json", "_SUCCESS", "data/train-00000-of-00002.arrow", "data/train-00001-of-00002.arrow",
        "data/validation-00000-of-00001.arrow",
    }  # fmt: skip


def test_the_hub_is_asked_only_for_what_can_be(tmp_path: Path) -> None:
    output = write_output(str(tmp_path), documents=30, train_shards=1)
    hub = FakeHub()
    with pytest.raises(RequestError, match="repo: "):
        upload(output.url, "not/a/name", api=hub)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="memory://x is not on a file system"):
        upload("memory://x", "acme/corpus", api=hub)  # type: ignore[arg-type]
    (tmp_path / manifest.SUCCESS_NAME).unlink()
    with pytest.raises(MillError, match="_SUCCESS is missing"):
        published_names(output.url)
    assert not hub.calls


def test_an_error_of_the_hub_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import httpx

    def refuse(*_: Any, **__: Any) -> None:
        raise httpx.ConnectError("no route")

    output = write_output(str(tmp_path), documents=30, train_shards=1)
    monkeypatch.setattr(FakeHub, "upload_folder", refuse)
    with pytest.raises(MillError, match="to acme/corpus: no route"):
        upload(output.url, "acme/corpus", api=FakeHub())  # type: ignore[arg-type]


def test_the_manifest_is_of_this_version(tmp_path: Path) -> None:
    (tmp_path / EXPORT_NAME).write_text('{"version": 0}')
    with pytest.raises(MillError, match="is not an export of this version"):
        read(str(tmp_path))
    assert Export.__struct_config__.frozen
