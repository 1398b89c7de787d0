"""SIGKILL at random moments in each stage, a worker that hardly runs, two runs at once: the same shards."""

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from pipelines.config import MillConfig
from pipelines.run import mill
from pipelines.verify import verify
from sharding import storage
from sharding.storage import manifest
from sharding.storage.output import Output
from tests.chaos.conftest import Account, Job
from tests.chaos.jobs import CAPACITY, UNFLUSHED, Child, MadeLog, hashes, ledger_keys, repeated


def slow_engine(tokens_per_second: int) -> dict[str, Any]:
    """Generation that takes long enough to be met by a kill; the engine's speed decides no text."""
    arguments = {"capacity": CAPACITY, "tokens_per_second": tokens_per_second}
    return {"models": {"pretend": {"engine": "rehearsal", "name": "pretend", "engine_args": arguments}}}


SLOW = slow_engine(800)
WAIT_S = 120


def finish(job: Job, config: MillConfig, account: Account) -> None:
    """Finish the run, undisturbed, and compare it with the one that nothing disturbed."""
    mill(config)
    account.lost += repeated(config) + len(job.keys - set(ledger_keys(config)))
    account.lost += sum(hashes(config).get(name) != sha256 for name, sha256 in job.expected.items())
    assert account.lost == 0
    assert hashes(config) == job.expected
    assert verify(config.output).problems == []


def until(true: Callable[[], bool], child: Child) -> None:
    """Return when something is true, or the child has ended."""
    deadline = time.monotonic() + WAIT_S
    while not true() and child.process.is_alive():
        assert time.monotonic() < deadline, "it hangs"
        time.sleep(0.002)


def holds(child: Child, lease: Path) -> bool:
    """Whether the child is at work on the output: the lease is the first thing that a stage writes."""
    try:
        return json.loads(lease.read_bytes())["pid"] == child.process.pid
    except (OSError, ValueError):
        return False


def kill_at_random(job: Job, folder: Path, stage: str, kills: int, account: Account, made: MadeLog, speed: int) -> None:
    rng = random.Random(f"{stage} {kills}")
    sections = slow_engine(speed)
    config = job.config(folder, **sections)
    lease, done = Path(Output(config.output).lease), Path(manifest.manifest_url(config.output, stage))
    mill(config, stages=manifest.STAGES[: manifest.STAGES.index(stage)])
    met = tries = met_generating = 0
    durable: list[tuple[int, set[str]]] = []  # after how many calls; what the ledger had then
    while met < kills:
        tries += 1
        assert tries <= 10 * kills, "hardly a kill met the stage: the test shows nothing"
        child = Child(job.tree(folder, **sections), made, (stage,), replace=True)
        before = len(made.calls())
        until(lambda child=child: holds(child, lease), child)  # type: ignore[misc]
        if stage == "augment" and rng.random() < 0.75:
            # Most at a random moment after the first generation, however long the start takes here.
            until(lambda before=before: len(made.calls()) > before, child)  # type: ignore[misc]
            time.sleep(rng.uniform(0, 0.8))
        else:
            time.sleep(rng.uniform(0, 1.5 * job.elapsed_s[stage]) * rng.random())
        was_at_work = child.kill() and not done.exists()
        met += was_at_work
        met_generating += was_at_work and len(made.calls()) > before
        keys = set(ledger_keys(config))
        durable.append((len(made.calls()), keys))
        assert len(made.keys() - keys) <= UNFLUSHED, "more than the unflushed would be made again"
        if rng.random() < 0.75:
            lease.unlink(missing_ok=True)  # else the next one finds that its holder is gone, which takes a second
        if done.exists():
            # It was through: once more from its beginning.
            storage.remove(str(done), str(done.parent))
    account.fault, account.injected = f"SIGKILL in {stage}", met
    finish(job, config, account)
    calls = made.calls()
    for count, keys in durable:
        account.lost += sum(call.partition(" ")[0] in keys for call in calls[count:])
    account.again = made.again()
    assert account.lost == 0, "what was durable was made again"
    assert made.keys() == job.keys
    assert stage != "augment" or met_generating >= kills // 4, "hardly a kill met the generation"


@pytest.mark.slow
@pytest.mark.parametrize("stage", manifest.STAGES)
def test_kills(job: Job, tmp_path: Path, stage: str, account: Account, made: MadeLog) -> None:
    kill_at_random(job, tmp_path, stage, 2, account, made, speed=800)


@pytest.mark.chaos_long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", manifest.STAGES)
def test_many_kills(large_job: Job, tmp_path: Path, stage: str, account: Account, made: MadeLog) -> None:
    kill_at_random(large_job, tmp_path, stage, 25, account, made, speed=200)


def two_at_once(job: Job, folder: Path, apart_s: float, account: Account, made: MadeLog) -> None:
    """Two runs of one config on one output: one is refused, or waits for nothing and ends with the same shards."""
    children = [Child(job.tree(folder, **SLOW), made)]
    time.sleep(apart_s)
    children.append(Child(job.tree(folder, **SLOW), made))
    outcomes = sorted(child.outcome() for child in children)
    account.fault = "two runs on one output at once"
    account.injected += 2
    assert "done" in outcomes, outcomes
    for outcome in outcomes:
        assert outcome == "done" or (outcome.startswith("RequestError") and "is being written by another" in outcome)
    finish(job, job.config(folder, **SLOW), account)
    account.again += made.again()
    assert account.again == 0, "both have generated"


@pytest.mark.slow
def test_two_runs_at_once(job: Job, tmp_path: Path, account: Account, made: MadeLog) -> None:
    two_at_once(job, tmp_path, 0.0, account, made)


@pytest.mark.chaos_long
@pytest.mark.timeout(1800)
def test_two_runs_at_many_distances(job: Job, tmp_path: Path, account: Account) -> None:
    rng = random.Random(4)
    for number in range(20):
        folder = tmp_path / str(number)
        folder.mkdir()
        two_at_once(job, folder, rng.uniform(0, 3), account, MadeLog(folder / "made.log"))


@pytest.mark.slow
def test_a_second_run_with_another_config_keeps_out(job: Job, tmp_path: Path, account: Account, made: MadeLog) -> None:
    mill(job.config(tmp_path, **SLOW), stages=["score"])
    first = Child(job.tree(tmp_path, **SLOW), made)
    lease = Path(Output(str(tmp_path / "out")).lease)
    until(lambda: holds(first, lease), first)
    other = Child(job.tree(tmp_path, difficulty={"scorer": "rehearsal", "segment_tokens": 32}), made, replace=True)
    account.fault, account.injected = "a second run that would replace the first", 1
    refused = other.outcome()
    assert refused.startswith("RequestError") and "is being written by another run (augment" in refused
    assert first.outcome() == "done"
    finish(job, job.config(tmp_path, **SLOW), account)
    assert made.keys() == job.keys


@pytest.mark.slow
def test_a_worker_that_hardly_runs(job: Job, tmp_path: Path, account: Account) -> None:
    """One of two worker processes is stopped most of the time, wherever it stands."""
    path = tmp_path / "mill.yaml"
    path.write_text(yaml.safe_dump(job.tree(tmp_path)))
    parallel = ["--direct_num_workers=2", "--direct_running_mode=multi_processing"]
    log = tmp_path / "log"
    with log.open("wb") as out:
        run = subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli", "run", str(path), "--", *parallel], stdout=out, stderr=out
        )
    ended = threading.Event()

    def hold_up() -> None:
        parent = psutil.Process(run.pid)
        while not ended.is_set():
            try:
                servers = parent.children()  # workers are forked from one
                children = (child for server in servers for child in server.children())
                workers = [child for child in children if "local_worker_main" in " ".join(child.cmdline())]
                slow = sorted(workers, key=lambda worker: worker.pid)[:1]
                for worker in slow:
                    worker.send_signal(signal.SIGSTOP)
                    account.injected += 1
                ended.wait(0.3)
                for worker in slow:
                    worker.send_signal(signal.SIGCONT)
            except psutil.Error:
                pass  # it has ended meanwhile
            ended.wait(0.1)

    thread = threading.Thread(target=hold_up)
    thread.start()
    try:
        assert run.wait(240) == 0, log.read_text()[-3000:]
    finally:
        ended.set()
        thread.join()
        run.kill()
    account.fault = "a worker stopped for 0.3 s of every 0.4 s"
    finish(job, job.config(tmp_path), account)
