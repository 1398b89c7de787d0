"""A worker of a pool on Prism, killed while it owns the engine: the run ends soon with a line, and nothing is lost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from pipelines.run import mill
from tests.chaos.conftest import Account, Job
from tests.chaos.jobs import ledger_keys
from tests.chaos.test_kills import finish, slow_engine
from tests.test_conformance import prism

ENVIRONMENT = {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": str(Path(__file__).parents[2]),
    "NO_COLOR": "1",
}
ENDS_WITHIN_S = 60


def started(words: list[str], folder: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        return subprocess.Popen(
            words, cwd=folder, env=os.environ | ENVIRONMENT, stdout=out, stderr=out, start_new_session=True
        )


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """A pool of workers, as docs/runners.md starts one: its process and its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    module = "apache_beam.runners.worker.worker_pool_main"
    process = started(["python", "-m", module, f"--service_port={port}"], tmp_path, tmp_path / "pool.log")
    try:
        yield process.pid, port
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def workers_of(pool: int) -> list[psutil.Process]:
    return [child for child in psutil.Process(pool).children() if "SdkHarness" in " ".join(child.cmdline())]


@pytest.mark.slow
def test_a_worker_that_owns_the_engine_is_killed(
    job: Job, tmp_path: Path, account: Account, pool: tuple[int, int]
) -> None:
    server = prism()
    config = job.config(tmp_path, **slow_engine(100))
    (tmp_path / "mill.yaml").write_text(yaml.safe_dump(job.tree(tmp_path, **slow_engine(100))))
    mill(config, stages=["score"])
    options = ["--runner=PrismRunner", f"--prism_location={server}", "--environment_type=EXTERNAL"]
    options += [f"--environment_config=localhost:{pool[1]}"]
    log = tmp_path / "log"
    words = [sys.executable, "-m", "pipelines.cli", "augment", "mill.yaml", "--", *options]
    run = started(words, tmp_path, log)
    try:
        deadline = time.monotonic() + 120
        while not ledger_keys(config):
            assert run.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        killed = workers_of(pool[0])
        for worker in killed:
            worker.kill()
        began = time.monotonic()
        code = run.wait(2 * ENDS_WITHIN_S)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
    account.fault, account.injected = "a pool's worker killed while it owns the engine, on Prism", len(killed)
    said = log.read_text()
    assert time.monotonic() - began < ENDS_WITHIN_S and code == 1, said
    line = (
        "error augment: PrismRunner: one of its workers ended in the middle of a step"  # Prism's own lines are beside
    )
    assert said.count(line) == 1 and "Traceback" not in said, said
    durable = set(ledger_keys(config))
    assert 0 < len(durable) < len(job.keys), "the kill met the generation"
    made = mill(config, stages=["augment"])["augment"].counts
    assert made["found"] == len(durable) and made["generated"] == len(job.keys) - len(durable)
    finish(job, config, account)
