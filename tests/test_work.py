"""A worker process's part in a run: what it has bought it doesn't buy again, and it stops when too much fails."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from augment.engines.config import ModelConfig
from augment.engines.protocol import Generation, GenerationRequest, RequestRejected
from augment.engines.rehearsal import RehearsalEngine
from augment.feeding import heartbeat, registry, worker
from augment.feeding.heartbeat import Heartbeat, clear_beats, read_beats
from augment.feeding.stats import FeederStats
from augment.feeding.tickets import Failure
from augment.feeding.worker import TooManyFailures, Worker, WorkOrder
from augment.ledger import parts, recent
from augment.ledger.reading import read_ledger
from augment.ledger.recent import FinishedSince
from augment.transforms import FAILED, _GenerateFn
from pipelines.config import MillConfig
from pipelines.joints import trace_planner
from pipelines.run import mill
from pipelines.yaml_config import from_mapping
from sharding import storage
from sharding.errors import MillError
from sharding.records.families import LEDGER_SCHEMA
from sharding.records.types import Request, sample_key
from sharding.storage import manifest
from tests.conftest import rehearsal_tree
from tests.test_ledger import finished_keys, row

NOW_MS = int(time.time() * 1000)


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    worker.close_all()


def order(folder: Path, **fields: Any) -> WorkOrder:
    return WorkOrder(**{"run_id": "run", "began_ms": NOW_MS, "ledger_url": str(folder / "ledger"), **fields})


# --- what is finished -------------------------------------------------------------------------------------------------


def test_new_parts_are_found_old_ones_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "REFRESH_S", 0.0)
    monkeypatch.setattr(recent, "REFRESH_SHARE", 1e9)
    url = str(tmp_path)
    old = f"{url}/part-{NOW_MS - 3 * recent.CLOCK_SKEW_MS}-{'0' * 16}.arrow"
    storage.write_part(old, [row(999)], LEDGER_SCHEMA)
    finished = FinishedSince(url, NOW_MS)
    for n in range(60):  # more parts than chunks
        parts.write_part(url, [row(3 * n + i, thought_tokens=n + 1) for i in range(3)])
        finished.refresh()
    assert [finished.tokens(row(n).key) for n in (0, 1, 90, 179)] == [1, 1, 31, 60]
    assert [finished.tokens(row(n).key) for n in range(180)] == [n // 3 + 1 for n in range(180)]
    assert finished.tokens(row(999).key) is None and finished.tokens(row(180).key) is None
    assert len(finished._runs) <= recent._MAX_RUNS


def test_what_is_on_its_way_counts_and_is_held_once(tmp_path: Path) -> None:
    finished = FinishedSince(str(tmp_path), NOW_MS)
    finished.add(row(1, thought_tokens=7))
    assert finished.tokens(row(1).key) == 7
    parts.write_part(str(tmp_path), [row(1, thought_tokens=7)])
    finished.refresh()
    assert finished.tokens(row(1).key) == 7 and finished._own == {}


def test_the_store_is_asked_seldom_and_may_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    def refuse(*_: Any, **__: Any) -> list[str]:
        nonlocal asked
        asked += 1
        raise MillError("no permission")

    monkeypatch.setattr(recent, "every_part_keys", refuse)
    finished = FinishedSince(str(tmp_path), NOW_MS)
    for _ in range(5):
        finished.refresh()
    assert asked == 1


# --- bundles ----------------------------------------------------------------------------------------------------------


class CountingEngine(RehearsalEngine):
    """Counts what is generated, by key and seed; `refuse` says which keys are rejected."""

    def __init__(self, model: ModelConfig, made: Counter[str], refuse: Callable[[str], bool]) -> None:
        super().__init__(model)
        self._made, self._refuse = made, refuse

    async def generate(self, request: GenerationRequest) -> Generation:
        if self._refuse(request.key):
            raise RequestRejected("not this one")
        self._made[f"{request.key}/{request.seed}"] += 1
        return await super().generate(request)


class Stage:
    """The elements of a run's generation; `make` gives a DoFn for them, `made` counts what its engine generates."""

    def __init__(self, config: MillConfig, requests: list[Request]) -> None:
        self._config = config
        self.elements = [(request, list(range(request.samples))) for request in requests]
        self.keys = [sample_key(r.request_key, i) for r, samples in self.elements for i in samples]
        self.made: Counter[str] = Counter()
        self.refuse: Callable[[str], bool] = lambda key: False

    def make(self, order: WorkOrder) -> _GenerateFn:
        return _GenerateFn(trace_planner(self._config), "pretend", self._config.feeding, order)


@pytest.fixture(scope="module")
def finished_stage(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: str) -> tuple[MillConfig, list[Request]]:
    folder = tmp_path_factory.mktemp("finished")
    documents = [{"id": str(i), "text": f"text {i} of many words and numbers {i * i} " * 30} for i in range(12)]
    (folder / "source.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    config = from_mapping(rehearsal_tree(folder, byte_tokenizer, str(folder / "source.jsonl")))
    mill(config, stages=["score", "augment"])
    augmented = manifest.require(config.output, "augment")
    urls = manifest.file_urls(config.output, augmented, "requests")
    requests = {r.request_key: r for url in urls for r in storage.read_records(url, Request)}
    return config, list(requests.values())


@pytest.fixture
def stage(finished_stage: tuple[MillConfig, list[Request]], monkeypatch: pytest.MonkeyPatch) -> Stage:
    found = Stage(*finished_stage)
    monkeypatch.setattr(
        registry, "create_engine", lambda model: CountingEngine(model, found.made, lambda key: found.refuse(key))
    )
    return found


def run_bundle(fn: _GenerateFn, elements: list[Any]) -> Counter[str]:
    """A bundle from beginning to end; its counts."""
    fn.start_bundle()
    outputs = [output for element in elements for output in fn.process(element)]
    outputs += fn.finish_bundle()
    counts: Counter[str] = Counter()
    for output in outputs:
        value = getattr(output, "value", output)
        if getattr(output, "tag", None) != FAILED:
            counts.update(getattr(value, "value", value))
    return counts


@pytest.mark.parametrize("where", ["the same process", "another process"])
def test_a_bundle_run_again_makes_only_what_was_not_flushed(stage: Stage, tmp_path: Path, where: str) -> None:
    spec = order(tmp_path / "again")
    first = stage.make(spec)
    first.start_bundle()
    half = stage.elements[: len(stage.elements) // 2]
    for element in half:
        list(first.process(element))
    flushed = {sample_key(r.request_key, i) for r, samples in half for i in samples}
    while len(worker._workers[spec].finished._own) < len(flushed):
        time.sleep(0.005)
    worker._workers[spec].flush()
    first.teardown()  # the bundle fails somewhere else, and the runner runs it again
    if where == "another process":
        worker.close_all()
    counts = run_bundle(stage.make(spec), stage.elements)
    assert counts["generated"] == len(stage.keys) and counts["found"] == 0  # all of it is this run's
    assert set(stage.made.values()) == {1}, "something was bought twice"
    rows = list(read_ledger(spec.ledger_url))
    assert sorted(r.key for r in rows) == sorted(stage.keys)
    assert counts["thought_tokens_now"] == sum(r.thought_tokens for r in rows)


def test_a_later_run_of_this_process_goes_by_the_ledger_alone(stage: Stage, tmp_path: Path) -> None:
    spec = order(tmp_path / "again")
    assert run_bundle(stage.make(spec), stage.elements)["generated"] == len(stage.keys)
    for part in (tmp_path / "again" / "ledger").iterdir():
        part.unlink()
    later = order(tmp_path / "again", run_id="another")
    assert run_bundle(stage.make(later), stage.elements)["generated"] == len(stage.keys)
    assert finished_keys(spec.ledger_url) == set(stage.keys)


def test_too_many_failures_stop_the_run_and_keep_what_was_paid_for(stage: Stage, tmp_path: Path) -> None:
    bad = set(stage.keys[-len(stage.keys) // 5 :])
    stage.refuse = bad.__contains__
    planned = len(stage.keys)
    spec = order(tmp_path / "stop", planned_generations=planned, max_failed_fraction=0.1)
    with pytest.raises(TooManyFailures, match=r"generations of a worker failed.*max_failed_fraction=0.1.*not this one"):
        run_bundle(stage.make(spec), stage.elements)
    assert worker._workers[spec].bundles == 0
    with pytest.raises(TooManyFailures):  # the same bundle again is not tried again
        stage.make(spec).start_bundle()
    assert worker._workers[spec].bundles == 0
    kept = finished_keys(spec.ledger_url)
    assert kept and kept.isdisjoint(bad)
    stage.refuse = lambda key: False
    stage.made.clear()
    counts = run_bundle(stage.make(order(tmp_path / "stop", run_id="next")), stage.elements)
    assert counts["generated"] == len(stage.keys)
    assert {name.partition("/")[0] for name in stage.made} == set(stage.keys) - kept


def test_a_run_that_fails_too_much_ends_with_the_reason(
    stage: Stage, write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]]
) -> None:
    stage.refuse = lambda key: key[0] in "01234567"
    source = write_jsonl([{"id": str(i), "text": f"text {i} and {i * 7} " * 40} for i in range(8)])
    config = from_mapping(rehearsal_config(source))
    told = r"^augment \(.*Generate with pretend.*max_failed_fraction=0\.01.*not this one"
    with pytest.raises(MillError, match=told) as caught:
        mill(config, stages=["score", "augment"])
    assert "run again" not in str(caught.value) and "change what they failed for" in str(caught.value)
    assert manifest.read(config.output, "augment") is None
    assert not Path(config.output, "stages", "augment", "alive").exists()
    paid_for = len(finished_keys(config.ledger_url))
    stage.refuse = lambda key: False
    counts = mill(config, stages=["augment"])["augment"].counts
    assert counts["found"] == paid_for and counts["failed"] == 0
    assert counts["generations"] == counts["found"] + counts["generated"]


def failure(key: str) -> Failure:
    request = GenerationRequest(key=key, prompt_token_ids=np.arange(3, dtype=np.uint32), max_tokens=4)
    return Failure(request, None, key, "model", "why", 0)


@pytest.mark.parametrize(
    ("limit", "planned", "failed", "completed", "stops"),
    [
        (0.01, None, 99, 0, False),  # too few to tell
        (0.01, None, 100, 0, True),
        (0.01, None, 100, 9900, False),  # just the limit
        (0.01, None, 101, 9899, True),
        (0.01, 1000, 10, 0, False),
        (0.01, 1000, 11, 989, True),  # certain, however few
        (0.0, 1000, 1, 500, True),
        (1.0, 1000, 1000, 0, False),
    ],
)
def test_when_failures_stop_a_run(
    tmp_path: Path, limit: float, planned: int | None, failed: int, completed: int, stops: bool
) -> None:
    one = Worker(order(tmp_path, planned_generations=planned, max_failed_fraction=limit))
    one._completed = completed
    for n in range(failed):
        one.note_failure(failure(str(n)))
        one.note_failure(failure(str(n)))  # of a bundle that was run twice
    if stops:
        with pytest.raises(TooManyFailures, match=f"{failed} of the first {failed + completed}"):
            one.check_failures()
    else:
        one.check_failures()
    one.close()


def test_rows_that_cannot_be_written_do_not_hide_why_everything_ends(tmp_path: Path) -> None:
    """The stage calls `close_all` in a `finally`."""
    (tmp_path / "file").write_text("no folder")
    one = worker.begin_bundle(order(tmp_path, ledger_url=str(tmp_path / "file" / "ledger")))
    one.keep(row(1))
    with pytest.raises(TooManyFailures):
        try:
            raise TooManyFailures("of the first 100")
        finally:
            worker.close_all()


# --- heartbeats -------------------------------------------------------------------------------------------------------


def busy() -> dict[str, FeederStats]:
    stats = FeederStats("model")
    stats.submitted, stats.completed, stats.capacity = 30, 10, 8
    stats.observe(8)
    return {"model": stats}


def test_a_heartbeat_that_goes_while_it_is_looked_at_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tmp_path / "alive")
    for name in ("b", "d"):
        storage.write_json(f"{folder}/{name}.json", {"at": 1000.0, "host": name})
    storage.write_bytes(f"{folder}/c.json", b"half of one {")
    listed = storage.list_names
    monkeypatch.setattr(storage, "list_names", lambda url: ["a.json", *listed(url)])  # a has ended since
    assert [beat["host"] for beat in read_beats(folder, 1000.0)] == ["b", "d"]


def test_a_heartbeat_is_there_while_there_is_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "stats", busy)
    folder = str(tmp_path / "alive")
    assert read_beats(folder, time.time()) == []
    beat = Heartbeat(folder, beat_s=0.05)
    beat.begin()
    deadline = time.monotonic() + 5
    while not read_beats(folder, time.time()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    [found] = read_beats(folder, time.time())
    assert found["models"] == {"model": {"in_flight": 8, "waiting": 12, "capacity": 8, "failed": 0}}
    assert read_beats(folder, time.time() + heartbeat.STALE_S + 5) == []
    beat.end()
    while list((tmp_path / "alive").glob("*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    beat.begin()
    while not read_beats(folder, time.time()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    beat.close()
    assert list((tmp_path / "alive").glob("*")) == []
    assert not [thread for thread in threading.enumerate() if "heartbeat" in thread.name]


def test_a_beat_that_fails_is_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []

    def changing() -> dict[str, Any]:
        looked.append(1)
        if len(looked) == 1:
            raise RuntimeError("dictionary changed size during iteration")
        return busy()

    folder = str(tmp_path / "alive")
    monkeypatch.setattr(registry, "stats", changing)
    beat = Heartbeat(folder, beat_s=0.05)
    beat.begin()
    deadline = time.monotonic() + 5
    while not read_beats(folder, time.time()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    beat.close()


def test_what_dead_processes_left_is_cleared(tmp_path: Path) -> None:
    folder = tmp_path / "alive"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps({"at": time.time() - 1000}))
    (folder / "b.json").write_text("{half")
    assert read_beats(str(folder), time.time()) == []
    clear_beats(str(folder), str(tmp_path))
    clear_beats(str(folder), str(tmp_path))
    assert not folder.exists()


def test_a_store_that_refuses_heartbeats_fails_nothing(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    spec = order(tmp_path / "beats", beats_url=str(tmp_path / "file" / "alive"))
    assert run_bundle(stage.make(spec), stage.elements)["generated"] == len(stage.keys)
