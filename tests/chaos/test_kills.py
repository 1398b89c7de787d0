"""SIGKILL at random moments in each stage, a worker that hardly runs, two runs at once: the same shards."""

import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import yaml

from pipelines.run import mill
from sharding import manifest, shard_io
from sharding.lease import lease_url
from sharding.verify import verify
from tests.chaos.conftest import Account, Job
from tests.chaos.jobs import Child, hashes, ledger_keys, repeated

SLOW_ENGINE = {
    "models": {
        "pretend": {
            "engine": "rehearsal",
            "name": "pretend",
            "engine_args": {"capacity": 8, "tokens_per_second": 800},
        }
    }
}
"""Generation that takes long enough to be met by a kill; the engine's speed decides no text."""


def assert_undisturbed(job: Job, folder: Path, account: Account, **sections: object) -> None:
    """Finish the run and compare with the one that nothing disturbed."""
    config = job.config(folder, **sections)
    mill(config)
    account.lost += repeated(config) + len(job.keys - set(ledger_keys(config)))
    account.lost += sum(hashes(config).get(name) != sha256 for name, sha256 in job.expected.items())
    assert account.lost == 0
    assert hashes(config) == job.expected
    assert verify(config.output).problems == []


def kill_at_random(job: Job, folder: Path, stage: str, kills: int, account: Account) -> None:
    rng = random.Random(f"{stage} {kills}")
    config = job.config(folder, **SLOW_ENGINE)
    earlier = manifest.STAGES[: manifest.STAGES.index(stage)]
    mill(config, stages=earlier)
    met = tries = 0
    while met < kills:
        tries += 1
        assert tries <= 10 * kills, "hardly a kill met the stage: the test shows nothing"
        child = Child(job.tree(folder, **SLOW_ENGINE), (stage,), replace=True)
        # The lease is the first thing a stage writes.
        deadline = time.monotonic() + 60
        while not Path(lease_url(config.output)).exists() and child.process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 1.5 * job.elapsed_s[stage]) * rng.random())
        met += child.kill()
        if manifest.read(config.output, stage) is not None:
            # It was through: once more from its beginning.
            shard_io.remove(manifest.manifest_url(config.output, stage))
    account.fault, account.injected = f"SIGKILL in {stage}", met
    assert_undisturbed(job, folder, account, **SLOW_ENGINE)


@pytest.mark.slow
@pytest.mark.parametrize("stage", manifest.STAGES)
def test_kills(job: Job, tmp_path: Path, stage: str, account: Account) -> None:
    kill_at_random(job, tmp_path, stage, 2, account)


@pytest.mark.chaos_long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", manifest.STAGES)
def test_many_kills(job: Job, tmp_path: Path, stage: str, account: Account) -> None:
    kill_at_random(job, tmp_path, stage, 25, account)


@pytest.mark.slow
def test_two_runs_at_once(job: Job, tmp_path: Path, account: Account) -> None:
    children = [Child(job.tree(tmp_path, **SLOW_ENGINE)) for _ in range(2)]
    outcomes = sorted(child.outcome() for child in children)
    account.fault, account.injected = "two runs on one output at once", 2
    assert outcomes[1] == "done" or "another run" in outcomes[1]
    assert "done" in outcomes, outcomes
    for outcome in outcomes:
        assert outcome == "done" or (outcome.startswith("RequestError") and "is being written by another" in outcome)
    assert_undisturbed(job, tmp_path, account, **SLOW_ENGINE)


@pytest.mark.slow
def test_a_second_run_with_another_config_keeps_out(job: Job, tmp_path: Path, account: Account) -> None:
    mill(job.config(tmp_path, **SLOW_ENGINE), stages=["score"])
    first = Child(job.tree(tmp_path, **SLOW_ENGINE))
    url = Path(lease_url(str(tmp_path / "out")))
    deadline = time.monotonic() + 60
    while not url.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    other = Child(job.tree(tmp_path, difficulty={"scorer": "rehearsal", "segment_tokens": 32}), replace=True)
    account.fault, account.injected = "a second run that would replace the first", 1
    refused = other.outcome()
    assert refused.startswith("RequestError") and "is being written by another run (augment" in refused
    assert first.outcome() == "done"
    assert_undisturbed(job, tmp_path, account, **SLOW_ENGINE)


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
                children = parent.children(recursive=True)
                workers = [child for child in children if "sdk_worker_main" in " ".join(child.cmdline())]
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
    assert_undisturbed(job, tmp_path, account)
