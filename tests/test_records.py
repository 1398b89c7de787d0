"""Records survive the way between workers and the way to disk."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding import records, storage
from sharding.errors import MillError
from sharding.records.base import decode, encode
from sharding.records.families import KEPT, QUARANTINE, ROWS, SEGMENTS
from sharding.records.rows import Item, Row
from sharding.records.types import Candidate, Quarantined, ScoredSegment


@st.composite
def scored_segments(draw: st.DrawFn) -> ScoredSegment:
    ids = draw(st.lists(st.integers(0, 65_535), max_size=20))
    nats = np.array(draw(st.lists(st.floats(0, 60, width=16), min_size=len(ids), max_size=len(ids))), np.float16)
    return ScoredSegment(
        doc_id=draw(st.text(st.characters(exclude_categories=("Cs",)))),
        segment_index=draw(st.integers(0, 1000)),
        num_segments=draw(st.integers(1, 1000)),
        token_start=draw(st.integers(0, 1 << 40)),
        input_ids=np.array(ids, np.uint16),
        surprisal_nats=nats,
        entropy_nats=nats[::-1].copy(),
        memory_nats=nats[: draw(st.sampled_from([0, len(nats)]))],
        difficulty_nats=draw(st.floats(0, 1e6)),
        metadata=draw(st.none() | st.just('{"a": 1}')),
    )


@given(scored_segments())
def test_bytes_round_trip(segment: ScoredSegment) -> None:
    assert records.decode(ScoredSegment, records.encode(segment)) == segment


def test_beam_carries_every_record_by_its_bytes() -> None:
    """One that is not registered would be pickled without a word. In a process of its own: tests have records too."""
    code = (
        "import importlib\n"
        "from apache_beam.coders import registry\n"
        "from sharding.records.base import Record\n"
        "importlib.import_module('pipelines.cli')\n"
        "for stage in ('score', 'augment', 'select', 'pack'): importlib.import_module(f'pipelines.{stage}')\n"
        "kinds = Record.__subclasses__()\n"
        "print(len(kinds), {k.__name__ for k in kinds if type(registry.get_coder(k)).__name__ != 'RecordCoder'} or '')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    number, *pickled = done.stdout.split()
    assert int(number) >= 13 and not pickled


@pytest.mark.parametrize("last", [0.0, -0.0, 1.0])
@pytest.mark.parametrize("length", [0, 1, 31, 32, 1000])
def test_zeros_take_no_room_and_come_back(length: int, last: float) -> None:
    nats = np.zeros(length, np.float16)
    nats[-1:] = last
    item = Item(doc_id="d", source_start=0, input_ids=nats, token_type=np.zeros(length, np.uint8))
    data = encode(item)
    found = decode(Item, data)
    assert found.input_ids.tobytes() == nats.tobytes()
    assert found.token_type.tobytes() == bytes(length)
    if length == 1000 and str(last) == "0.0":
        assert len(data) < 100


@given(st.lists(scored_segments(), max_size=5))
def test_arrow_round_trip(segments: list[ScoredSegment]) -> None:
    schema = SEGMENTS.schema(vocab_size=50_000)
    batch = records.to_batch(segments, schema)
    assert batch.schema == schema
    # A slice has offsets that don't start at 0.
    assert list(records.from_batch(ScoredSegment, batch)) == segments
    assert list(records.from_batch(ScoredSegment, batch.slice(1))) == segments[1:]


def test_rows_round_trip_and_keep_their_width() -> None:
    row = Row(
        input_ids=np.arange(8, dtype=np.uint32),
        token_type=np.array([1] * 6 + [0] * 2, np.uint8),
        seq_lengths=np.array([4, 2], np.int32),
        doc_ids=["a", "b"],
        source_starts=np.array([0, 9], np.int64),
    )
    batch = records.to_batch([row, row], ROWS.schema(sequence_length=8, vocab_size=100_000))
    assert batch.schema.field("input_ids").type.list_size == 8
    assert list(records.from_batch(Row, batch)) == [row, row]


def test_columns_not_read_come_as_nothing(tmp_path: object) -> None:
    candidate = Candidate(
        doc_id="d",
        segment_index=1,
        key="k-0",
        sample=0,
        tier="deep",
        model="m",
        prompt="p",
        closed="natural",
        finish_reason="stop",
        thought_tokens=3,
        text="because",
        input_ids=np.array([1, 2, 3], np.uint16),
        shown_tokens=40,
        value=1.5,
        contaminated=["quiz"],
        kept=False,
        reasons=["loop"],
    )
    url = f"{tmp_path}/part.arrow"
    entry = storage.write_part(url, [candidate] * 3, KEPT.schema(vocab_size=10))
    assert entry.rows == 3
    assert list(storage.read_records(url, Candidate)) == [candidate] * 3
    [light, *_] = storage.read_records(url, Candidate, columns=("doc_id", "reasons"))
    assert (light.doc_id, light.reasons, light.text, len(light.input_ids)) == ("d", ["loop"], "", 0)


def test_an_id_that_does_not_fit_is_an_error_that_names_the_column() -> None:
    segment = ScoredSegment(
        doc_id="d",
        segment_index=0,
        num_segments=1,
        token_start=0,
        input_ids=np.array([70_000], np.uint32),
        surprisal_nats=np.zeros(1, np.float16),
        entropy_nats=np.zeros(1, np.float16),
        memory_nats=np.empty(0, np.float16),
        difficulty_nats=0.0,
    )
    with pytest.raises(MillError, match="input_ids"):
        records.to_batch([segment], SEGMENTS.schema(vocab_size=60_000))


@pytest.mark.parametrize(("vocab_size", "dtype"), [(1, "uint16"), (65_536, "uint16"), (65_537, "uint32")])
def test_narrowest_id_type(vocab_size: int, dtype: str) -> None:
    assert records.token_dtype(vocab_size) == np.dtype(dtype)
    assert records.token_arrow_type(vocab_size) == getattr(pa, dtype)()


def test_scored_parts_take_at_most_six_bytes_per_token(tmp_path: object) -> None:
    rng = np.random.default_rng(0)
    n = 200_000
    segment = ScoredSegment(
        doc_id="d",
        segment_index=0,
        num_segments=1,
        token_start=0,
        input_ids=rng.integers(0, 49_152, n).astype(np.uint16),
        surprisal_nats=rng.gamma(1, 3, n).astype(np.float16),
        entropy_nats=rng.gamma(1, 3, n).astype(np.float16),
        memory_nats=np.empty(0, np.float16),
        difficulty_nats=1.0,
    )
    entry = storage.write_part(f"{tmp_path}/p.arrow", [segment], SEGMENTS.schema(vocab_size=49_152))
    assert entry.size_bytes / n <= 6.0


def test_a_half_written_file_is_not_there(tmp_path: object) -> None:
    def broken() -> object:
        yield Quarantined(stage="score", origin="o", reason="r", detail="d")
        raise RuntimeError("power cut")

    url = f"{tmp_path}/folder/part.arrow"
    with pytest.raises(RuntimeError):
        storage.write_part(url, broken(), QUARANTINE.schema())
    assert not storage.exists(url)
    fs, path = storage.filesystem(f"{tmp_path}/folder")
    assert fs.ls(path) == []


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
def test_a_part_cut_short_is_an_error_that_names_it(tmp_path: object, keep: float) -> None:
    refused = [Quarantined(stage="score", origin=f"o{i}", reason="r", detail="d" * 50) for i in range(500)]
    url = f"{tmp_path}/part.arrow"
    storage.write_part(url, refused, QUARANTINE.schema())
    data = storage.read_bytes(url)
    storage.write_bytes(url, data[: int(len(data) * keep)])
    with pytest.raises(MillError, match=r"part\.arrow"):
        list(storage.read_records(url, Quarantined))


def test_memory_store_is_a_store_like_any_other() -> None:
    url = "memory://records-test/part.arrow"
    refused = [Quarantined(stage="score", origin="o", reason="r", detail="d")]
    storage.write_part(url, refused, QUARANTINE.schema())
    assert list(storage.read_records(url, Quarantined)) == refused


def test_chunks_hold_every_value_once() -> None:
    texts = ["a" * 6, "b" * 4, "", "c" * 12, "d" * 3, "e" * 3, "f"]
    assert list(storage.chunks(texts, 10, len)) == [texts[:2], texts[2:4], texts[4:]]
    assert list(storage.chunks([], 10, len)) == []
