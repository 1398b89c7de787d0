"""Arrow files of others: crafted offsets, other types than declared, bombs. They are told by name.

Where it would crash this process if it were taken as it is, it is read by another one.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from augment.ledger import parts
from augment.ledger.reading import read_ledger
from pipelines.verify import verify
from pipelines.watch import status
from sharding import storage
from sharding.errors import MillError
from sharding.records.arrow import schema_of
from sharding.records.rows import MaskedRow
from sharding.records.types import Candidate, LedgerRow, ScoredSegment
from sharding.storage.arrow_messages import MAX_BATCH_BYTES, check_messages
from tests.foreign_output import (
    first_file,
    make_output,
    only_batch,
    replace_file,
    rewrite,
    stream,
    with_column,
    with_offsets,
)
from tests.packed_output import write_output

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: str) -> Path:
    """A finished output; not to be changed."""
    return make_output(tmp_path_factory.mktemp("made"), byte_tokenizer)


@pytest.fixture
def output(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


USES = {
    "report": "from pipelines import report; report.render({0!r})",
    "inspect": "from pipelines.documents.inspect import *; list(inspect({0!r}, Wanted()))",
    "export": "from sharding.shards.export import export; export({0!r}, 'parquet', {0!r} + '-exported')",
    "read": "from sharding.shards.dataset import PackedDataset; list(PackedDataset({0!r}))",
}


def use_elsewhere(name: str, output: Path) -> None:
    """Read an output in a process of its own, which must end with a MillError."""
    code = (
        "from sharding.errors import MillError\n"
        f"try:\n    {USES[name].format(str(output)).replace('; ', chr(10) + '    ')}\n"
        "except MillError as error:\n    print('told', error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr[-2_000:])
    assert done.stdout.startswith("told cannot read ") and str(output) in done.stdout, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("offset", [1 << 30, -5], ids=["far behind", "before"])
@pytest.mark.parametrize(
    ("use", "stage", "family", "column"),
    [
        ("report", "score", "segments", "doc_id"),
        ("inspect", "select", "kept", "text"),
        ("report", "select", "rejected", "reasons"),
        ("export", "pack", "shards", "doc_ids"),
        ("export", "pack", "shards", "seq_lengths"),
        ("read", "pack", "shards", "source_starts"),
    ],
)
def test_offsets_that_lead_elsewhere_are_told(
    output: Path, use: str, stage: str, family: str, column: str, offset: int
) -> None:
    batch = only_batch(first_file(output, stage, family))
    replace_file(output, stage, family, with_offsets(batch, column, offset))
    use_elsewhere(use, output)


@pytest.mark.parametrize("column", ["key", "text", "token_ids"])
def test_a_ledger_part_with_crafted_offsets_is_left_out(
    tmp_path: Path, column: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = ledger_of(tmp_path, with_offsets(ledger_batch(), column, 1 << 30))
    assert list(read_ledger(url)) == []
    assert "ledger part skipped" in caplog.text


def ledger_row(**fields: Any) -> LedgerRow:
    plain = {"str": "x" * 50, "int": 1, "float": 1.0}
    hints = LedgerRow.__annotations__
    values = {name: plain.get(str(hints[name]), 1) for name in LedgerRow.__struct_fields__}
    values |= {"token_ids": np.arange(9, dtype=np.uint32), "sum_logprobs": None, "made_from": []}
    return LedgerRow(**{**values, **fields})


def ledger_batch() -> pa.RecordBatch:
    from sharding.records.arrow import to_batch

    return to_batch([ledger_row(key=f"{n}-0") for n in range(3)], schema_of(LedgerRow))


def ledger_of(folder: Path, data: bytes) -> str:
    """A ledger with one part, whose name tells the digest of its bytes."""
    (folder / "ledger").mkdir()
    (folder / "ledger" / f"part-1-{parts._digest(data)}.arrow").write_bytes(data)
    return str(folder / "ledger")


N = 3
OTHER_TYPES: dict[str, tuple[str, pa.Array]] = {
    "text for a number": ("thought_tokens", pa.array(["many"] * N)),
    "a wider number": ("thought_tokens", pa.array([1 << 40] * N)),
    "a float for a number": ("sample", pa.array([0.5] * N)),
    "a number for text": ("key", pa.array([1] * N)),
    "bytes for text": ("text", pa.array([b"\xff\xfe"] * N)),
    "no value": ("key", pa.array([None] * N, pa.string())),
    "no value of a number": ("finished_at", pa.array([None] * N, pa.float64())),
    "no value in a list": ("token_ids", pa.array([[None]] * N, pa.list_(pa.uint32()))),
    "a list of lists": ("token_ids", pa.array([[[1]]] * N)),
    "a dictionary": ("tier", pa.array(["a"] * N).dictionary_encode()),
    "nothing": ("model", pa.nulls(N)),
    "large text": ("model", pa.array(["m"] * N, pa.large_string())),
    "a date": ("finished_at", pa.array([0] * N, pa.timestamp("us"))),
    "a union": ("wall_s", pa.UnionArray.from_sparse(pa.array([0] * N, pa.int8()), [pa.array([1.0] * N)])),
    "runs": ("sample", pa.RunEndEncodedArray.from_arrays(pa.array([N], pa.int32()), pa.array([1], pa.int32()))),
}


@pytest.mark.parametrize(("column", "values"), OTHER_TYPES.values(), ids=OTHER_TYPES)
def test_a_ledger_row_of_other_types_is_left_out(
    tmp_path: Path, column: str, values: pa.Array, caplog: pytest.LogCaptureFixture
) -> None:
    url = ledger_of(tmp_path, stream(with_column(ledger_batch(), column, values)))
    assert list(read_ledger(url)) == [] and list(read_ledger(url, (column,))) == []
    assert "ledger part skipped" in caplog.text


def test_a_ledger_part_without_a_column_or_with_one_twice_is_left_out(tmp_path: Path) -> None:
    batch = ledger_batch()
    url = ledger_of(tmp_path, stream(batch.drop_columns(["request_key"])))
    assert list(read_ledger(url)) == []
    assert len(list(read_ledger(url, ("key",)))) == N, "what is not asked for may be absent"
    twice = pa.RecordBatch.from_arrays([*batch.columns, batch.column("key")], [*batch.schema.names, "key"])
    (tmp_path / "two").mkdir()
    assert list(read_ledger(ledger_of(tmp_path / "two", stream(twice)))) == []


def test_status_of_a_ledger_of_other_types(output: Path) -> None:
    """A row with text for a number was taken, and status ended in a traceback."""
    data = stream(with_column(ledger_batch(), "thought_tokens", pa.array(["x"] * N)))
    url = ledger_of(output.parent, data)
    rewrite(output / "stages/augment/plan.json", lambda plan: plan.update(ledger=url, ledger_beside=""))
    assert status.read(str(output))["generation"]["generations"] == 0


@pytest.mark.parametrize(
    ("kind", "column", "values"),
    [
        (ScoredSegment, "difficulty_nats", ["hard"]),
        (ScoredSegment, "segment_index", [1.5]),
        (ScoredSegment, "surprisal_nats", [[1.0]]),
        (Candidate, "kept", ["yes"]),
        (Candidate, "value", ["1"]),
        (Candidate, "reasons", [[1]]),
        (Candidate, "reasons", ["loop"]),
        (MaskedRow, "loss_mask", [[1, 0]]),
    ],
)
def test_records_are_of_their_declared_types(tmp_path: Path, kind: Any, column: str, values: list[Any]) -> None:
    schema = schema_of(kind, vocab_size=9, sequence_length=2)
    other = schema.set(schema.get_field_index(column), pa.field(column, pa.array(values).type))
    path = tmp_path / "part.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, other) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist([], other))
    with pytest.raises(MillError, match=f"its column {column} is of the type"):
        list(storage.read_records(str(path), kind))


# --- size -------------------------------------------------------------------------------------------------------------


def bomb(size_bytes: int) -> bytes:
    """A stream whose one value is so many zeros: a few kilobytes as zstd."""
    schema = schema_of(LedgerRow)
    zeros = pa.py_buffer(np.zeros(size_bytes, np.uint8))
    offsets = pa.py_buffer(np.array([0, size_bytes], np.int32))
    text = pa.Array.from_buffers(pa.string(), 1, [None, offsets, zeros])
    batch = ledger_batch().slice(0, 1)
    index = schema.get_field_index("text")
    return stream(batch.set_column(index, schema.field(index), text), "zstd")


def test_what_a_batch_unpacks_to_is_known_before(tmp_path: Path) -> None:
    data = bomb(MAX_BATCH_BYTES + 1)
    assert len(data) < 1 << 20
    before = pa.total_allocated_bytes()
    pool_peak = pa.default_memory_pool().max_memory()
    assert list(read_ledger(ledger_of(tmp_path, data))) == []
    assert pa.default_memory_pool().max_memory() <= max(pool_peak, before + (8 << 20))
    check_messages(bomb(MAX_BATCH_BYTES // 2))


def test_a_batch_of_many_rows_is_refused(tmp_path: Path) -> None:
    many = pa.RecordBatch.from_arrays([pa.array(np.zeros(1 << 21, np.int32))], ["sample"])
    assert list(read_ledger(ledger_of(tmp_path, stream(many, "zstd")), ("sample",))) == []


def test_every_batch_of_the_mill_is_measured_as_arrow_does(made: Path) -> None:
    """The sizes read off the messages are those that Arrow unpacks."""
    from sharding.storage.arrow_messages import _unpacked

    seen = 0
    for path in made.rglob("*.arrow"):
        data = path.read_bytes()
        messages = [m for m in pa.ipc.MessageReader.open_stream(data) if m.type == "record batch"]
        for message, batch in zip(messages, pa.ipc.open_stream(data), strict=True):
            rows, size_bytes = _unpacked(memoryview(message.metadata), memoryview(message.body))
            assert rows == batch.num_rows
            assert batch.nbytes <= size_bytes <= batch.get_total_buffer_size() + 64 * 64
            seen += 1
    assert seen >= 7


@pytest.mark.parametrize(
    ("column", "change", "said"),
    [
        ("token_type", lambda types: types | 200, "a token type is not known"),
        ("input_ids", lambda ids: ids | 60_000, "is not below the vocabulary size"),
        ("seq_lengths", lambda lengths: lengths * 0 - 7, "seq_lengths are not all above 0"),
        ("seq_lengths", lambda lengths: lengths + (1 << 29), "padding is not where seq_lengths end"),
    ],
)
def test_an_export_of_values_that_no_format_has_is_refused(
    tmp_path: Path, column: str, change: Callable[[np.ndarray], np.ndarray], said: str
) -> None:
    from sharding.shards.export import export

    output = tmp_path / "out"
    write_output(str(output), documents=30, train_shards=1, batch_bytes=1 << 20)
    batch = only_batch(first_file(output, "pack", "shards"))
    old = batch.column(column)
    flat = pa.array(change(old.flatten().to_numpy()).astype(old.type.value_type.to_pandas_dtype()))
    new = (
        pa.FixedSizeListArray.from_arrays(flat, type=old.type)
        if pa.types.is_fixed_size_list(old.type)
        else pa.ListArray.from_arrays(old.offsets, flat, type=old.type)
    )
    replace_file(output, "pack", "shards", stream(batch.set_column(batch.schema.get_field_index(column),
                                                                   batch.schema.field(column), new)))  # fmt: skip
    for fmt in ("megatron", "datatrove", "mds", "olmo", "parquet"):
        with pytest.raises(MillError, match=said):
            export(str(output), fmt, str(tmp_path / fmt))


@pytest.mark.slow
def test_verify_names_every_kind(output: Path) -> None:
    batch = only_batch(first_file(output, "score", "segments"))
    path = replace_file(output, "score", "segments", with_offsets(batch, "doc_id", 1 << 30))
    problems = verify(str(output)).problems
    assert any(problem.where.startswith(str(path)) and "cannot be read" in problem.what for problem in problems)
