"""Machines whose clocks differ by an hour: what is decided by the time is decided by one clock, the store's."""

from __future__ import annotations

import datetime
import email.utils
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from augment.feeding import heartbeat, worker
from augment.feeding.heartbeat import Heartbeat, read_beats
from augment.ledger import parts
from augment.ledger.reading import read_ledger
from augment.ledger.recent import FinishedSince
from pipelines.plan.drift_watch import Generations
from pipelines.run import mill
from sharding import storage
from sharding.errors import RequestError
from sharding.models.server import retry_after_s
from sharding.storage import clock, lease
from sharding.storage.output import Output
from tests.chaos.conftest import Account, Job
from tests.chaos.jobs import Child, MadeLog
from tests.chaos.test_kills import finish, holds, slow_engine, until
from tests.s3_server import BUCKET, FaultyS3, server_fixture, store_fixture  # noqa: F401
from tests.test_ledger import row

pytest.importorskip("moto", reason="moto's server is not installed")
pytest.importorskip("s3fs", reason="s3fs is not installed")

HOUR_S = 3600.0
TEN_MINUTES_MS = 600_000

Machine = Callable[[float], AbstractContextManager[None]]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Within it, this process is one of another machine, whose clock is so many seconds ahead."""

    @contextmanager
    def other(ahead_s: float) -> Iterator[None]:
        real_s, real_ns = time.time, time.time_ns
        with monkeypatch.context() as patched:
            patched.setattr(time, "time", lambda: real_s() + ahead_s)
            patched.setattr(time, "time_ns", lambda: real_ns() + int(ahead_s * 1e9))
            patched.setattr(clock, "_known", {})
            yield

    return other


@pytest.fixture(params=["a disk", "S3"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "a disk":
        return str(tmp_path / "ledger")
    request.getfixturevalue("store")
    return f"s3://{BUCKET}/ledger"


@pytest.mark.parametrize("ahead_s", [-HOUR_S, HOUR_S])
def test_what_another_machine_has_generated_is_not_bought_again(ledger: str, machine: Machine, ahead_s: float) -> None:
    with machine(0.0):
        began_ms = clock.now_ms(ledger)
    with machine(ahead_s):
        parts.write_part(ledger, [row(1)])
    for reader_s in (0.0, -ahead_s):
        with machine(reader_s):
            finished = FinishedSince(ledger, began_ms)
            finished.refresh()
            assert finished.tokens(row(1).key) == 5, "a bundle that is tried again on this machine buys it again"
    # Later too, when only what is new is looked at.
    with machine(ahead_s):
        parts.write_part(ledger, [row(2)])
    finished._next_refresh = 0.0
    finished.refresh()
    assert finished.tokens(row(2).key) == 5


@pytest.mark.parametrize("ahead_s", [-HOUR_S, HOUR_S])
def test_what_drifts_on_another_machine_is_noticed(tmp_path: Path, machine: Machine, ahead_s: float) -> None:
    ledger = str(tmp_path)
    with machine(ahead_s):
        parts.write_part(ledger, [row(0, prompt_version="v1")])  # of the pilot
    time.sleep(0.1)
    with machine(-ahead_s):
        began_ms = clock.now_ms(ledger)
    time.sleep(0.1)
    with machine(ahead_s):
        parts.write_part(ledger, [row(1, prompt_version="v1")])
    generations = Generations(ledger, began_ms, ["v1"])
    generations.read()
    assert sum(int(totals.generations.sum()) for totals in generations.totals(ended=True).values()) == 1


@pytest.mark.parametrize("ahead_s", [-HOUR_S, HOUR_S])
def test_rows_of_several_machines_are_dated_alike(tmp_path: Path, machine: Machine, ahead_s: float) -> None:
    """Drift is told by what has ended, and the rate by what has of late."""
    ledger = str(tmp_path)
    for n, ahead in enumerate((0.0, ahead_s)):
        with machine(ahead):
            here = worker.Worker(worker.WorkOrder(run_id="run", began_ms=clock.now_ms(ledger), ledger_url=ledger))
            here.keep(row(n, finished_at=time.time()))
            here.close()
    first, second = sorted(read_ledger(ledger), key=lambda found: found.key)
    assert abs(first.finished_at - time.time()) < 30 and abs(second.finished_at - time.time()) < 30


@pytest.mark.slow
def test_a_run_on_a_machine_whose_clock_is_wrong(
    job: Job, tmp_path: Path, account: Account, made: MadeLog, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    account.fault, account.injected = "a machine whose clock is an hour ahead", 1
    orders: list[worker.WorkOrder] = []
    begin = worker.Worker.__init__

    def noted(one: worker.Worker, order: worker.WorkOrder) -> None:
        orders.append(order)
        begin(one, order)

    monkeypatch.setattr(worker.Worker, "__init__", noted)
    now_ms = time.time_ns() // 1_000_000
    with machine(HOUR_S):
        mill(job.config(tmp_path))
    dates = [order.began_ms for order in orders]
    dates += [parts._written_ms(Path(url).name) for url in parts.ledger_parts(str(tmp_path / "out" / "ledger"))]
    assert len(orders) == 1 and len(dates) > 2
    assert all(abs(date - now_ms) < TEN_MINUTES_MS for date in dates)
    finish(job, job.config(tmp_path), account)
    account.again = made.again()
    assert account.again == 0
    assert not list((tmp_path / "out" / "ledger").glob(".*"))


@pytest.mark.chaos_long
def test_a_second_run_from_another_machine_keeps_out(
    job: Job, tmp_path: Path, account: Account, made: MadeLog, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can't see the first one's process; it sees the lease move, whatever the two clocks say."""
    account.fault, account.injected = "a second run from another machine, its clock an hour ahead", 1
    slow = slow_engine(50)
    mill(job.config(tmp_path, **slow), stages=["score"])
    first = Child(job.tree(tmp_path, **slow), made)
    held = Path(Output(str(tmp_path / "out")).lease)
    until(lambda: holds(first, held), first)
    with machine(HOUR_S), monkeypatch.context() as patched:
        patched.setattr(lease, "machine_identity", lambda: "another machine")
        with pytest.raises(RequestError, match="is being written by another run"):
            mill(job.config(tmp_path, difficulty={"scorer": "rehearsal", "segment_tokens": 32}), replace=True)
    assert first.outcome() == "done"
    finish(job, job.config(tmp_path, **slow), account)
    account.again = made.again()
    assert account.again == 0 and made.keys() == job.keys


def test_who_is_at_work_is_seen_whatever_that_machine_s_clock_says(ledger: str, machine: Machine) -> None:
    with machine(HOUR_S):
        beat = Heartbeat(ledger)
        beat._write()
    assert len(read_beats(ledger, time.time())) == 1
    assert len(read_beats(ledger, time.time() + heartbeat.STALE_S + 60)) == 0


@pytest.mark.parametrize("ahead_s", [-2 * HOUR_S, 2 * HOUR_S])
def test_what_is_being_written_is_not_swept_away(tmp_path: Path, machine: Machine, ahead_s: float) -> None:
    """On a disk that machines share, files are dated by the disk."""
    new, old = (tmp_path / f".{name}.{'0' * 32}.tmp" for name in ("new", "old"))
    for path in (new, old):
        path.write_bytes(b"half")
    two_hours_ago = time.time() - 2 * HOUR_S
    os.utime(old, (two_hours_ago, two_hours_ago))
    with machine(ahead_s):
        storage.sweep(str(tmp_path))
    assert new.exists() and not old.exists()
    assert sorted(tmp_path.iterdir()) == [new]


@pytest.mark.parametrize("ahead_s", [-HOUR_S, 0.0, HOUR_S])
def test_a_server_s_date_is_one_by_its_own_clock(ahead_s: float) -> None:
    now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=ahead_s)
    date, then = (
        email.utils.format_datetime(now + datetime.timedelta(seconds=later), usegmt=True) for later in (0, 20)
    )
    assert retry_after_s(then, date) == 20.0
    assert retry_after_s("20", date) == 20.0
    for none in ("", "soon", "Fri, 31 Dec 99999 23:59:59 GMT"):
        found: Any = retry_after_s(then, none)
        assert found is None or abs(found - max(0.0, 20 + ahead_s)) <= 2


def test_a_store_that_says_no_dates_leaves_this_machine_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.local import LocalFileSystem

    def nothing(self: LocalFileSystem, path: str) -> None:
        raise NotImplementedError

    monkeypatch.setattr(clock, "_known", {})
    monkeypatch.setattr(LocalFileSystem, "modified", nothing)
    assert abs(clock.now_s(str(tmp_path)) - time.time()) < 1.0
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(clock, "_known", {})
    assert abs(clock.now_s("nowhere://folder") - time.time()) < 1.0
