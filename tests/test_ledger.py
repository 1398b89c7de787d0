"""The ledger: durable when it says so, whole or skipped, one row per key whatever happened."""

from __future__ import annotations

import itertools
import pickle
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from augment.engines.config import ModelConfig, SamplingConfig
from augment.engines.protocol import Closing
from augment.engines.vllm_settings import engine_arguments
from augment.feeding.heartbeat import clear_beats, read_beats
from augment.ledger import compaction, parts, recent, superseded, transforms
from augment.ledger import writer as ledger_writer
from augment.ledger.compaction import compact
from augment.ledger.dropping import drop, parse
from augment.ledger.forgetting import forget
from augment.ledger.keys import key_hash, keys_of, keys_url
from augment.ledger.parts import ledger_parts, read_part
from augment.ledger.reading import choose, collapse_duplicates, read_ledger
from augment.ledger.recent import FinishedSince
from augment.ledger.transforms import _ByKeyFn, missing_samples
from augment.ledger.writer import LedgerWriter
from augment.requests import dialects
from augment.requests import keys as request_keys
from augment.requests.closing import ClosingConfig
from augment.requests.dialects import load_dialect
from augment.requests.keys import make_request, request_key, what_decides_text
from augment.requests.planner import TracePlanner
from pipelines.watch.bought import read_bought
from sharding import storage
from sharding.errors import MillError
from sharding.hashing import fraction_of, seed_of
from sharding.records.base import encode
from sharding.records.families import LEDGER_SCHEMA
from sharding.records.types import LedgerRow, Request, sample_key
from sharding.storage.arrow_files import write_part


def row(n: int, sample: int = 0, **fields: Any) -> LedgerRow:
    values = {
        "key": sample_key(f"{n:032x}", sample),
        "request_key": f"{n:032x}",
        "sample": sample,
        "segment_id": f"doc{n}#0",
        "tier": "deep",
        "model": "model",
        "revision": "main",
        "engine": "rehearsal",
        "engine_version": "1",
        "prompt": "expert",
        "prompt_version": "abc",
        "text": f"thought {n} " * 20,
        "thought_tokens": 5,
        "token_ids": np.arange(n, n + 5, dtype=np.uint32),
        "sum_logprobs": None if n % 2 else -1.5,
        "finish_reason": "stop",
        "closed": "natural",
        "prompt_tokens": 7,
        "wall_s": 0.5,
        "finished_at": 1000.0 + n,
    }
    return LedgerRow(**{**values, **fields})


def request_of(key: str, doc_id: str, segment_index: int, samples: int) -> Request:
    return Request(
        doc_id=doc_id,
        segment_index=segment_index,
        tier="deep",
        model="model",
        prompt="expert",
        request_key=key,
        samples=samples,
        max_tokens=8,
        expected_tokens=8.0,
        prompt_tokens=1,
        prompt_token_ids=np.zeros(1, np.uint32),
        shown_tokens=1,
        text="",
    )


def finished_keys(url: str) -> set[str]:
    return {row.key for row in read_ledger(url, columns=["key"])}


@pytest.fixture(params=["local", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "ledger")
    else:
        yield "memory://bucket/ledger"
        fsspec.filesystem("memory").rm("/bucket", recursive=True)


def put(url: str, name: str, rows: list[LedgerRow]) -> str:
    path = f"{url}/part-{name}.arrow"
    write_part(path, rows, LEDGER_SCHEMA)
    return path


def keys(rows: Any) -> list[str]:
    return sorted(r.key for r in rows)


# --- writing ----------------------------------------------------------------------------------------------------------


def test_what_is_flushed_can_be_read_by_others(url: str) -> None:
    writer = LedgerWriter(url, flush_seconds=1000)
    assert list(read_ledger(url)) == []
    rows = [row(n) for n in range(10)]
    for one in rows:
        writer.add(one)
    assert list(read_ledger(url)) == []
    writer.flush()
    assert sorted(read_ledger(url), key=lambda r: r.key) == rows
    writer.flush()
    assert len(ledger_parts(url)) == 1
    writer.close()


def test_parts_are_written_by_count(tmp_path: Path) -> None:
    url = str(tmp_path / "ledger")
    writer = LedgerWriter(url, flush_rows=10, flush_seconds=1000)
    for n in range(10):
        writer.add(row(n))
    deadline = time.monotonic() + 5
    while len(finished_keys(url)) < 10:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    for n in range(10, 15):
        writer.add(row(n))
    time.sleep(0.05)
    assert len(finished_keys(url)) == 10
    writer.close()
    assert len(finished_keys(url)) == 15


def test_parts_are_written_by_time(tmp_path: Path) -> None:
    url = str(tmp_path / "ledger")
    writer = LedgerWriter(url, flush_rows=1000, flush_seconds=0.05)
    for n in range(3):
        writer.add(row(n))
        deadline = time.monotonic() + 5
        while len(finished_keys(url)) <= n:
            assert time.monotonic() < deadline
            time.sleep(0.005)
    writer.close()
    with pytest.raises(MillError, match="closed"):
        writer.add(row(9))
    writer.close()


def test_threads_share_a_writer(tmp_path: Path) -> None:
    url = str(tmp_path / "ledger")
    writer = LedgerWriter(url, flush_rows=7, flush_seconds=0.01)

    def work(worker: int) -> None:
        for n in range(100):
            writer.add(row(worker * 100 + n))
            if n % 30 == 0:
                writer.flush()
                assert sample_key(f"{worker * 100 + n:032x}", 0) in finished_keys(url)
        writer.flush()

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert keys(read_ledger(url)) == keys(row(n) for n in range(400))


def test_a_store_that_refuses_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(tmp_path / "ledger")
    real, full = parts.write_part, True

    def write(*args: Any, **kwargs: Any) -> Any:
        if full:
            raise MillError("no space left")
        return real(*args, **kwargs)

    monkeypatch.setattr(ledger_writer, "write_part", write)
    writer = LedgerWriter(url, flush_rows=2, flush_seconds=0.05)
    for n in range(2 * 16):
        writer.add(row(n))
    for _ in range(2):
        with pytest.raises(MillError, match="no space left"):
            writer.flush()
    with pytest.raises(MillError, match="no space left"):
        writer.add(row(99))
    full = False
    writer.flush()
    writer.add(row(32))
    writer.close()
    assert keys(read_ledger(url)) == keys(row(n) for n in range(33))


ABANDON = """
import sys
from augment.ledger.writer import LedgerWriter
from tests.test_ledger import row
writer = LedgerWriter(sys.argv[1], flush_seconds=1000)
writer.add(row(1))
raise SystemExit(3)
"""


def test_what_was_paid_for_is_written_when_the_process_ends(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", ABANDON, str(tmp_path)], cwd=root, timeout=60, check=False)
    assert done.returncode == 3
    assert list(read_ledger(str(tmp_path))) == [row(1)]


def test_closing_a_writer_whose_store_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("a bug in a filesystem")

    monkeypatch.setattr(ledger_writer, "write_part", write)
    writer = LedgerWriter(str(tmp_path))
    writer.add(row(1))
    with pytest.raises(MillError, match="a bug in a filesystem"):
        writer.close()


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "flipped"])
def test_a_part_that_cannot_be_read_is_skipped(url: str, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    put(url, "1-a", [row(1), row(2)])
    broken = put(url, "2-b", [row(n) for n in range(3, 60)])
    put(url, "3-c", [row(60)])
    data = fsspec.open(broken).open().read()
    if damage == "cut":
        data = data[: len(data) * 2 // 3]
    elif damage == "empty":
        data = b""
    elif damage == "garbage":
        data = random.Random(0).randbytes(len(data))
    else:
        middle = len(data) // 2
        data = data[:middle] + bytes(b ^ 0xFF for b in data[middle : middle + 64]) + data[middle + 64 :]
    with fsspec.open(broken, "wb") as file:
        file.write(data)
    found = keys(read_ledger(url))
    assert found == keys([row(1), row(2), row(60)])
    assert any(broken in record.getMessage() for record in caplog.records)
    assert read_part(broken) is None


def test_no_flipped_bit_and_no_cut_goes_unnoticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [row(n) for n in range(60)]
    url = parts.write_part(str(tmp_path), rows)
    assert read_part(url) == rows
    data = Path(url).read_bytes()
    rng = random.Random(0)
    damaged = [bytearray(data) for _ in range(100)]
    for copy in damaged:
        copy[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    for copy in [*damaged, data[:-8], data + b"more", b""]:
        Path(url).write_bytes(copy)
        assert read_part(url) is None and read_part(url, ["key"]) is None and list(read_ledger(str(tmp_path))) == []
    assert all(url in record.getMessage() for record in caplog.records)
    Path(url).write_bytes(data)
    assert read_part(url) == rows


def test_parts_of_earlier_versions_have_no_digest(tmp_path: Path) -> None:
    url = put(str(tmp_path), "1763000000000-0123456789abcdef", [row(1)])
    assert read_part(url) == [row(1)]


def test_parts_since_a_time(tmp_path: Path) -> None:
    url = str(tmp_path)
    urls = [put(url, f"{ms}-{'0' * 16}", [row(ms)]) for ms in (1000, 2000, 3000)]
    assert ledger_parts(url) == urls and ledger_parts(url, since_ms=2000) == urls[1:]


def test_other_files_in_the_folder_are_not_parts(tmp_path: Path) -> None:
    put(str(tmp_path), "1-a", [row(1)])
    (tmp_path / ".part-2-b.arrow.0123.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    assert len(ledger_parts(str(tmp_path))) == 1


def test_only_the_columns_asked_for_are_read(url: str) -> None:
    put(url, "1-a", [row(1)])
    (found,) = read_ledger(url, columns=["key", "thought_tokens"])
    assert (found.key, found.thought_tokens, found.text) == (row(1).key, 5, "")
    assert found.token_ids.size == 0
    assert finished_keys(url) == {row(1).key}


def test_a_store_that_cannot_be_read_is_no_empty_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(str(tmp_path), "1-a", [row(1)])

    def refuse(url: str) -> Any:
        raise MillError(f"cannot read {url}: permission denied")

    monkeypatch.setattr(parts, "read_bytes", refuse)
    with pytest.raises(MillError, match="permission denied"):
        list(read_ledger(str(tmp_path)))


def test_a_part_that_was_compacted_while_we_read_is_found_again(tmp_path: Path) -> None:
    url = str(tmp_path)
    for n in range(4):
        put(url, f"{n}-a", [row(n)])
    reader = read_ledger(url)
    first = next(reader)
    compact(url)
    assert set(keys([first, *reader])) == set(keys(row(n) for n in range(4)))


@pytest.fixture
def compacted_late(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has a ledger compacted once it has been listed, and before the first of its parts is read."""

    def arm(url: str) -> None:
        left = [url]

        def read(*arguments: Any, **more: Any) -> bytes:
            if left:
                compact(left.pop())
            return storage.read_bytes(*arguments, **more)

        monkeypatch.setattr(parts, "read_bytes", read)

    return arm


def test_a_takedown_beside_a_compaction_leaves_nothing_of_the_document(
    tmp_path: Path, compacted_late: Callable[[str], None]
) -> None:
    url = str(tmp_path)
    for n in range(4):
        put(url, f"{n}-a", [row(n)])
    compacted_late(url)
    done = forget(url, {row(1).request_key}, lambda doc_id: doc_id in ("doc1", "doc2"), {})
    assert (done.rows, done.strangers) == (1, 1)
    assert keys(read_ledger(url)) == keys([row(0), row(3)])


def test_a_drop_beside_a_compaction_takes_everything_out(tmp_path: Path, compacted_late: Callable[[str], None]) -> None:
    url = str(tmp_path)
    for n in range(4):
        put(url, f"{n}-a", [row(n, model="bad" if n % 2 else "good")])
    compacted_late(url)
    done = drop(url, [parse("model=bad")])
    assert (done.rows, done.rows_before) == (2, 4)
    assert keys(read_ledger(url)) == keys([row(0), row(2)])


def test_what_was_generated_is_known_beside_a_compaction(tmp_path: Path, compacted_late: Callable[[str], None]) -> None:
    url = str(tmp_path)
    made = [row(n, step="draft") for n in range(4)]
    for n, one in enumerate(made):
        put(url, f"{n}-a", [one])
    compacted_late(url)
    finished = FinishedSince(url, 0)
    finished.refresh()
    assert [finished.tokens(one.key) for one in made] == [5, 5, 5, 5]
    parts.write_part(url, made[:1])  # so that there is something to compact
    compact(url)
    found = finished.row(made[3].key)
    assert found is not None and found.step == "draft" and found.text == made[3].text


def test_of_requests_with_one_key_a_bundle_sends_those_that_decide() -> None:
    """What is missing is the same as of all of them, in any order, and a passage's copies don't meet in one place."""
    rng = random.Random(0)
    made = [request_of(rng.choice("abc"), f"doc{n % 40:02}", n % 3, 1 + n % 4) for n in range(400)]
    rng.shuffle(made)
    by_key = _ByKeyFn()
    by_key.start_bundle()
    sent = [pair for one in made for pair in by_key.process(one)]
    for key in "abc":
        every = [one for one in made if one.request_key == key]
        of_bundle = [one for found, one in sent if found == key]
        assert len(of_bundle) <= 20 < len(every)
        outcomes = [
            [
                getattr(each, "value", each)
                for each in missing_samples((key, {"requests": asked, "rows": [], "begun": []}))
            ]
            for asked in (every, of_bundle)
        ]
        assert outcomes[0] == outcomes[1]


def test_a_bundle_remembers_so_many_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "MAX_TOLD", 2)
    by_key = _ByKeyFn()
    by_key.start_bundle()
    sent = [key for name in "aabbaccab" for key, _ in by_key.process(request_of(name, "doc", 0, 1))]
    assert sent == ["a", "b", "c", "b"] and len(by_key._told) == 2


# --- keys beside the parts --------------------------------------------------------------------------------------------


def test_the_keys_of_a_part_are_read_without_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(n, finished_at=n / 3, step="draft" if n == 2 else "") for n in range(5)]
    part = parts.write_part(url, rows)
    whole = keys_of(rows)
    fetched: list[str] = []

    def read(asked: str) -> bytes:
        fetched.append(asked)
        return storage.read_bytes(asked)

    monkeypatch.setattr(parts, "read_bytes", read)
    assert np.array_equal(parts.part_keys(part), whole) and fetched == [keys_url(part)]
    storage.write_bytes(keys_url(part), storage.read_bytes(keys_url(part))[:-1] + b"?")
    assert np.array_equal(parts.part_keys(part), whole) and fetched[-1] == part  # a damaged one is of no use
    storage.write_bytes(keys_url(part), b"")
    assert np.array_equal(parts.part_keys(part), whole)
    parts.remove_part(part, url)
    assert not storage.exists(keys_url(part)) and not storage.exists(part)
    with pytest.raises(MillError) as gone:
        parts.part_keys(part)
    assert isinstance(gone.value.__cause__, FileNotFoundError)


def test_a_part_stands_where_its_key_file_can_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(to: str, data: bytes) -> None:
        if to.endswith(".keys"):
            raise MillError("no space left")
        storage.write_bytes(to, data)

    monkeypatch.setattr(parts, "write_bytes", write)
    part = parts.write_part(str(tmp_path), [row(1)])
    assert ledger_parts(str(tmp_path)) == [part] and np.array_equal(parts.part_keys(part), keys_of([row(1)]))
    (tmp_path / Path(part).name).write_bytes(b"half")
    assert parts.part_keys(part) is None


def test_taking_rows_out_leaves_no_key_of_them(tmp_path: Path) -> None:
    url = str(tmp_path)
    for n in range(4):
        parts.write_part(url, [row(2 * n), row(2 * n + 1)])
    forget(url, {row(1).request_key}, lambda doc_id: doc_id in ("doc4", "doc5"), {})
    left = [found for _, found in parts.every_part_keys(url) if found is not None]
    assert sorted(np.concatenate(left)["key"].tolist()) == sorted(key_hash(row(n).key)[0] for n in (0, 2, 3, 6, 7))
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".arrow"] * 3 + [".keys"] * 3


def test_a_damaged_part_s_keys_are_not_believed(tmp_path: Path) -> None:
    part = parts.write_part(str(tmp_path), [row(1)])
    Path(part).write_bytes(Path(part).read_bytes()[:200])
    finished = FinishedSince(str(tmp_path), 1)
    finished.refresh()
    assert finished.tokens(row(1).key) is None
    parts.write_part(str(tmp_path), [row(1, thought_tokens=9)])
    finished._next_refresh = 0.0
    finished.refresh()
    assert finished.tokens(row(1).key) == 9


def test_long_runs_are_in_files_and_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "LONG_ROWS", 16)
    url = str(tmp_path)
    finished = FinishedSince(url, 1)
    for n in range(80):
        parts.write_part(url, [row(n, thought_tokens=n + 1, step="draft"), row(n, 1)])
        finished._next_refresh = 0.0
        finished.refresh()
    assert finished._long_runs and all(isinstance(each, np.memmap) for run in finished._long_runs for each in run)
    assert [finished.tokens(row(n).key) for n in range(80)] == [n + 1 for n in range(80)]
    assert all(finished.row(row(n).key) is not None for n in (0, 40, 79)) and finished.tokens(row(80).key) is None


def test_a_stretch_of_time_is_listed_by_few_prefixes() -> None:
    now = time.time_ns() // 1_000_000
    for ago_ms in (0, 1_000, 600_000, 10**7, 10**9, 10**11):
        found = parts._prefixes("part", now - ago_ms, now)
        assert len(found) <= parts.MOST_PREFIXES
        for written in (now - ago_ms, now - ago_ms // 2, now, now + parts.LISTED_AHEAD_MS):
            assert any(f"part-{written}-0a.arrow".startswith(prefix) for prefix in found)
    assert parts._prefixes("part", now, now)[0].startswith(f"part-{now // 10**7}")
    assert parts._prefixes("dropped", 0, now) == ["dropped-"]


# --- duplicates -------------------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.builds(row, st.integers(0, 3), st.integers(0, 1), text=st.sampled_from("abc"), finished_at=st.floats(0, 2)),
        max_size=12,
    ),
    st.randoms(),
)
def test_duplicates_collapse_the_same_way_in_any_order(rows: list[LedgerRow], rng: random.Random) -> None:
    collapsed = collapse_duplicates(rows)
    shuffled = rows[:]
    rng.shuffle(shuffled)
    assert [encode(r) for r in collapse_duplicates(shuffled)] == [encode(r) for r in collapsed]
    assert [r.key for r in collapsed] == sorted({r.key for r in rows})
    assert collapse_duplicates(collapsed) == collapsed
    for one in collapsed:
        same = [r for r in rows if r.key == one.key]
        assert one in same and one.finished_at == min(r.finished_at for r in same)
        assert choose(same) == one


def test_duplicates_count_the_same_everywhere_and_in_any_order(tmp_path: Path) -> None:
    """What is found, what this run remembers, what status counts and what compaction keeps is one and the same row."""
    early, late = row(1, finished_at=10.0, thought_tokens=7), row(1, finished_at=20.0, thought_tokens=3)
    tie = row(1, finished_at=10.0, thought_tokens=9, text="")
    request = Request(
        doc_id="doc1",
        segment_index=0,
        tier="deep",
        model="model",
        prompt="expert",
        request_key=early.request_key,
        samples=1,
        max_tokens=9,
        expected_tokens=9.0,
        prompt_tokens=1,
        prompt_token_ids=PROMPT,
        shown_tokens=1,
    )
    models = {"model": {"name": "model", "revision": "main", "engine": "rehearsal"}}
    for number, order in enumerate(itertools.permutations([early, late, tie])):
        assert choose(order) == early
        counts = [
            element.value
            for element in missing_samples((request.request_key, {"requests": [request], "rows": order, "begun": []}))
        ]
        assert counts == [{"generations": 1, "found": 1, "thought_tokens_found": 7}]
        url = str(tmp_path / str(number))
        finished = FinishedSince(url, 0)
        for place, each in enumerate(order):
            put(url, f"{place}-a", [each])
        finished.refresh()
        assert finished.tokens(early.key) == 7
        finished.add(late)
        assert finished.tokens(early.key) == 7
        plan = {"ledger": url, "prompts": {"expert": "abc"}, "models": models, "tiers": {}, "beside": []}
        done, _ = read_bought(plan, str(tmp_path), None)
        assert (done.tokens.tolist(), done.finished_at.tolist()) == ([7], [10.0])
        compact(url)
        assert [each.thought_tokens for each in read_ledger(url)] == [7]


def test_compaction_keeps_every_row_once(url: str, caplog: pytest.LogCaptureFixture) -> None:
    rows = [row(n) for n in range(50)]
    later = [row(n, finished_at=9999.0, text="a rerun") for n in range(10)]
    for i in range(10):
        put(url, f"{i}-a", rows[i * 5 : i * 5 + 5])
    put(url, "10-b", later)
    broken = put(url, "11-c", [])
    with fsspec.open(broken, "wb") as file:
        file.write(b"half")
    done = compact(url, rows_per_part=20)
    assert (done.parts_before, done.parts_after, done.rows_before, done.rows_after) == (11, 3, 60, 50)
    assert sorted(read_ledger(url), key=lambda r: r.key) == rows
    assert broken in ledger_parts(url)
    again = compact(url, rows_per_part=60)
    assert (again.parts_after, again.rows_after) == (1, 50)
    assert compact(url) == compact(url)
    assert sorted(read_ledger(url), key=lambda r: r.key) == rows


@pytest.mark.parametrize("name", ["led[v1]", "led?x", "led*", "a::b", "{a,b}"])
def test_a_ledger_s_name_is_no_pattern(tmp_path: Path, name: str) -> None:
    for url in (str(tmp_path / name / "ledger"), f"file://{tmp_path}/{name}/second", f"memory://{name}/ledger"):
        if "::" in url and url.startswith("memory"):
            continue  # joins two stores in fsspec
        assert ledger_parts(url) == []
        written = parts.write_part(url, [row(1)])
        assert ledger_parts(url) == [written] and finished_keys(url) == {row(1).key}
        storage.write_json(f"{url}/alive/a.json", {"at": 1000.0})
        assert [beat["at"] for beat in read_beats(f"{url}/alive", 1000.0)] == [1000.0]
        clear_beats(f"{url}/alive", url)
        assert read_beats(f"{url}/alive", 1000.0) == [] and ledger_parts(url) == [written]
        storage.remove(written, url)


def test_a_compaction_that_fails_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(tmp_path)
    for n in range(6):
        put(url, f"{n}-a", [row(n), row(0)])
    real, calls = parts.write_table, 0

    def write(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise MillError("no space left")
        return real(*args, **kwargs)

    monkeypatch.setattr(compaction, "write_table", write)
    with pytest.raises(MillError, match="no space left"):
        compact(url, rows_per_part=2)
    assert collapse_duplicates(read_ledger(url)) == [row(n) for n in range(6)]


@pytest.mark.parametrize("seed", range(4))
def test_compaction_keeps_the_rows_that_count(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows that are there twice, that differ in nothing, and of which only the text decides."""
    monkeypatch.setattr(superseded, "HELD_ROWS", 7)
    rng, url = random.Random(seed), str(tmp_path)
    rows = [
        row(n, finished_at=float(rng.choice([1, 1, 2])), thought_tokens=rng.choice([3, 4]), text=rng.choice("ab"))
        for n in rng.choices(range(25), k=70)
    ]
    for first in range(0, 70, 5):
        parts.write_part(url, rows[first : first + 5])
    done = compact(url, rows_per_part=10)
    expected = collapse_duplicates(rows)
    assert sorted(read_ledger(url), key=lambda one: one.key) == expected
    assert (done.rows_before, done.rows_after, done.parts_before) == (70, len(expected), 14)
    found = [keys for _, keys in parts.every_part_keys(url) if keys is not None]
    assert sorted(np.concatenate(found).tolist()) == sorted(keys_of(expected).tolist())
    assert len(ledger_parts(url)) == done.parts_after < 14
    assert len(list(tmp_path.iterdir())) == 2 * done.parts_after


def test_several_processes_compact_to_the_same_rows(tmp_path: Path) -> None:
    rows = [row(n % 90) for n in range(120)]
    for folder in ("one", "two"):
        for first in range(0, 120, 10):
            parts.write_part(str(tmp_path / folder), rows[first : first + 10])
    done = [compact(str(tmp_path / "one"), rows_per_part=30, processes=1)]
    done.append(compact(str(tmp_path / "two"), rows_per_part=30, processes=2))
    assert done[0] == done[1] and done[0].rows_after == 90
    names = [[url.rpartition("-")[2] for url in ledger_parts(str(tmp_path / one))] for one in ("one", "two")]
    assert sorted(names[0]) == sorted(names[1])


def test_a_part_that_is_damaged_beside_its_keys_takes_no_other_s_rows_along(tmp_path: Path) -> None:
    url = str(tmp_path)
    broken = parts.write_part(url, [row(1), row(2)])  # what counts of row 2, and nobody can read it
    for n in (2, 3, 4):
        parts.write_part(url, [row(n, finished_at=5000.0)])
    Path(broken).write_bytes(Path(broken).read_bytes()[:-9])
    compact(url)
    assert keys(read_ledger(url)) == keys([row(2), row(3), row(4)])
    assert len(ledger_parts(url)) == 2 and broken in ledger_parts(url)


def test_a_compaction_beside_a_takedown_brings_nothing_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(tmp_path)
    for n in range(4):
        parts.write_part(url, [row(n)])
    write = compaction.write_table

    def late(*arguments: Any, **more: Any) -> str:
        forget(url, set(), lambda doc_id: doc_id == "doc1", {})
        return write(*arguments, **more)

    monkeypatch.setattr(compaction, "write_table", late)
    with pytest.raises(MillError, match="1 parts were taken away while they were compacted"):
        compact(url)
    assert keys(read_ledger(url)) == keys([row(0), row(2), row(3)]) and len(ledger_parts(url)) == 3


# --- keys -------------------------------------------------------------------------------------------------------------

PROMPT = np.array([1, 2, 3], np.uint32)
MODEL: dict[str, Any] = {"engine": "vllm", "name": "m", "revision": "0" * 40}
BASE: dict[str, Any] = {"prompt_token_ids": PROMPT, "sampling": SamplingConfig(), "max_tokens": 100}
CLOSING = Closing(reserve_tokens=8, phrase="", phrase_token_ids=np.empty(0, np.uint32))


def key_of(model: Mapping[str, Any] = {}, **changes: Any) -> str:
    return request_key(what_decides_text(ModelConfig(**{**MODEL, **model})), **{**BASE, **changes})


def endpoint(**fields: Any) -> dict[str, Any]:
    return {"engine": "endpoint", "urls": ("http://a",), **fields}


def test_the_key_covers_everything_that_changes_the_text() -> None:
    models: list[dict[str, Any]] = [
        {},
        {"name": "n"},
        {"revision": "1" * 40},
        {"engine": "rehearsal"},
        {"max_model_len": 8192},
        {"engine_args": {"quantization": "fp8"}},
        {"engine_args": {"dtype": "float16"}},
        {"engine_args": {"kv_cache_dtype": "fp8"}},
        endpoint(),
        endpoint(served_name="lora"),
        endpoint(engine_args={"top_k": 20}),
        endpoint(engine_args={"top_k": 40}),
    ]
    changes: list[dict[str, Any]] = [
        {"prompt_token_ids": np.array([1, 2], np.uint32)},
        {"prompt_token_ids": np.array([1, 2, 4], np.uint32)},
        {"max_tokens": 101},
        {"min_tokens": 1},
        {"stop": ("</think>",)},
        {"closing": CLOSING},
        {"closing": Closing(reserve_tokens=9, phrase="", phrase_token_ids=np.empty(0, np.uint32))},
        {"closing": Closing(reserve_tokens=8, phrase="So", phrase_token_ids=PROMPT)},
        *(
            {"sampling": SamplingConfig(**change)}
            for change in (
                {"temperature": 0.7},
                {"top_p": 0.8},
                {"seed": 1},
                {"stop": ("\n\n",)},
                {"repetition_detection": False},
            )
        ),
    ]
    found = [*map(key_of, models), *(key_of(**change) for change in changes)]
    assert len(set(found)) == len(models) + len(changes)
    assert all(len(key) == 32 for key in found)


def test_what_only_changes_the_speed_is_not_in_the_key() -> None:
    faster = {"gpu_memory_utilization": 0.5, "max_num_seqs": 8, "enforce_eager": True, "tensor_parallel_size": 2}
    assert key_of({"engine_args": faster}) == key_of()
    assert key_of(endpoint(engine_args={"priority": 3})) == key_of(endpoint())
    assert key_of(endpoint(urls=("http://b",), timeout_s=9.0, api_key_env="KEY")) == key_of(endpoint())
    prices = {"dollars_per_million_tokens": 1.0, "tokens_per_gpu_second": 5.0, "max_in_flight": 3, "accelerator": "x"}
    assert key_of(prices) == key_of()
    arguments = {"capacity": 4, "tokens_per_second": 9}
    assert key_of({"engine": "rehearsal", "engine_args": arguments}) == key_of({"engine": "rehearsal"})


def test_what_acts_through_the_prompt_is_in_the_key_by_the_prompt() -> None:
    assert key_of({"thinking": True}) == key_of()
    assert key_of(endpoint(max_model_len=8192)) == key_of(endpoint())
    known = what_decides_text(ModelConfig(**MODEL))
    assert {"thinking", "max_model_len"} < known.keys(), "the stage's fingerprint needs them"


def test_the_key_does_not_depend_on_how_things_are_written() -> None:
    key = key_of()
    assert key == key_of(prompt_token_ids=PROMPT.astype(np.int64))
    assert key == key_of(sampling=SamplingConfig(temperature=0.60, seed=0))
    assert key_of(sampling=SamplingConfig(stop=("a",)), stop=("a", "b")) == key_of(stop=("a", "b"))
    assert key_of(endpoint(served_name=MODEL["name"])) == key_of(endpoint())
    order = [{"top_k": 2, "min_p": 0.1}, {"min_p": 0.1, "top_k": 2}]
    assert len({key_of(endpoint(engine_args=arguments)) for arguments in order}) == 1
    # Fixed for good: another key would buy every generation in existence again.
    assert key == "65d4a06e4ce202dddfc7e33e4fffd1a8"


def test_a_model_s_version_is_found_out_once_and_carried_to_the_workers(
    monkeypatch: pytest.MonkeyPatch, byte_tokenizer: str
) -> None:
    """A branch of the hub that moves during a run changes neither keys nor what workers load."""
    asked: list[str] = []
    commits = iter(letter * 40 for letter in "abcdef")

    def fingerprint(path_or_id: str, revision: str | None = None) -> str:
        asked.append(path_or_id)
        return "0123456789abcdef" if path_or_id == byte_tokenizer else next(commits)

    monkeypatch.setattr(request_keys, "model_fingerprint", fingerprint)
    models = {
        "hub": ModelConfig(engine="vllm", name="team/model", revision="stable"),
        "folder": ModelConfig(engine="vllm", name=byte_tokenizer, revision="stable"),
        "two": ModelConfig(engine="vllm", name="team/model", engine_args={"tokenizer": "team/tokenizer"}),
        "served": ModelConfig(
            engine="endpoint", name="any", urls=("http://a",), engine_args={"tokenizer": byte_tokenizer}
        ),
    }
    planner = TracePlanner(
        tiers=(), models=models, sampling=SamplingConfig(), closing=ClosingConfig(), tokenizer=byte_tokenizer
    )
    worker = pickle.loads(pickle.dumps(planner))  # noqa: S301 - our own
    found = {name: worker.model(name).revision for name in models}
    assert found == {"hub": "a" * 40, "folder": "stable", "two": "b" * 40, "served": None}
    arguments = engine_arguments(worker.model("two"), on_cpu=False)
    assert (arguments["revision"], arguments["tokenizer_revision"]) == ("b" * 40, None), "a tokenizer has its own"
    monkeypatch.setattr(dialects, "_load", lambda name, revision, *_: (name, revision))
    assert load_dialect(worker.model("two")) == ("team/tokenizer", None)
    assert load_dialect(worker.model("hub")) == ("team/model", "a" * 40)
    assert planner.describe() == worker.describe()
    assert asked == ["team/model", byte_tokenizer, "team/model", byte_tokenizer]


@given(st.lists(st.text(max_size=40), unique=True, max_size=30))
def test_seeds_follow_from_keys(names: list[str]) -> None:
    seeds = [seed_of(name) for name in names]
    assert seeds == [seed_of(name) for name in names]
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert all(0 <= fraction_of(name) < 1 for name in names)


def test_requests_of_a_prompt_differ_by_sample() -> None:
    key = key_of()
    one, two = (
        make_request(sample_key(key, i), PROMPT, sampling=SamplingConfig(stop=("x",)), max_tokens=9, stop=("</think>",))
        for i in range(2)
    )
    assert one.seed != two.seed
    assert one.stop == ("x", "</think>")
    assert (one.temperature, one.top_p, one.max_tokens) == (0.6, 0.9, 9)
