"""A worker process that is killed is told as that, with what to lower, and is not waited for without end."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from augment.feeding import keeper
from augment.feeding.config import FeedingConfig
from augment.feeding.stats import FeederStats
from pipelines import local_workers, worker_server
from pipelines.beam_options import beam_options
from pipelines.local_workers import has_processes, run_locally
from pipelines.running import run_pipeline
from pipelines.worker_server import Worker
from sharding import memory_kills
from sharding.errors import MillError

ROOT = Path(__file__).parent.parent
TWO = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")


class Waits:
    """A pipeline that Beam never ends, since the process behind a thread of its has gone."""

    def __init__(self, *options: str, said: str = "", thread: str = "run_worker") -> None:
        self.options = beam_options(options)
        self._said, self._thread = said, thread

    def run(self) -> Any:
        def minds() -> None:
            raise RuntimeError(self._said)

        threading.Thread(target=minds, name=self._thread).start()
        threading.Event().wait()


@pytest.mark.parametrize("said", ["Worker subprocess exited with return code 137", "... with return code -9"])
def test_a_killed_worker_is_told(said: str) -> None:
    with pytest.raises(MillError, match=r"score: a worker process was killed, as the system .* --direct_num_workers"):
        run_pipeline(Waits(*TWO, said=said), "score")  # type: ignore[arg-type]


def test_one_that_ends_otherwise_is_told_as_that() -> None:
    with pytest.raises(MillError, match=r"score: a worker process ended by itself \(.*return code 3\)"):
        run_pipeline(Waits(*TWO, said="Worker subprocess exited with return code 3"), "score")  # type: ignore[arg-type]


def test_where_the_system_has_killed_for_memory_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([1, 2])
    monkeypatch.setattr(local_workers, "kills_for_memory", lambda: next(counts))
    with pytest.raises(MillError, match="was killed, because memory ran out"):
        run_locally(Waits(*TWO, said="return code 137"))  # type: ignore[arg-type]


def test_other_threads_fail_as_they_did(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda failed: heard.append(str(failed.exc_value)))
    before = threading.excepthook

    class Ends(Waits):
        def run(self) -> Any:
            other = threading.Thread(target=lambda: 1 / 0, name="other")
            other.start()
            other.join()
            return self

        def wait_until_finish(self) -> str:
            return "DONE"

    assert run_locally(Ends(*TWO)) == "DONE"  # type: ignore[arg-type]
    assert heard == ["division by zero"] and threading.excepthook is before


def test_what_a_pipeline_raises_is_raised() -> None:
    class Fails(Waits):
        def run(self) -> Any:
            raise MillError("no such model")

    with pytest.raises(MillError, match="score: no such model"):
        run_pipeline(Fails(*TWO), "score")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (TWO, True),
        ((), False),
        (("--direct_num_workers=2", "--direct_running_mode=multi_threading"), False),
        (("--runner=PortableRunner", "--job_endpoint=localhost:1", *TWO), False),
    ],
)
def test_which_pipelines_have_processes(options: tuple[str, ...], expected: bool) -> None:
    assert has_processes(beam_options(options)) == expected


@pytest.mark.parametrize(
    ("told", "kills"), [({"vmstat": "pgfault 9\noom_kill 2\n", "events": "oom 7\noom_kill 3\n"}, 5), ({}, 0)]
)
def test_the_systems_counts_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: dict[str, str], kills: int
) -> None:
    for name, text in told.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory_kills, "_COUNTS", (tmp_path / "vmstat", tmp_path / "events"))
    assert memory_kills.kills_for_memory() == kills


@pytest.mark.parametrize("kills", [0, 1])
def test_an_engine_that_was_killed_for_memory_is_told_as_that(monkeypatch: pytest.MonkeyPatch, kills: int) -> None:
    counts = iter([4, 4 + kills])
    monkeypatch.setattr(keeper, "kills_for_memory", lambda: next(counts))
    kept = keeper.EngineKeeper(Mock(), Mock(), FeedingConfig(max_restarts=0), FeederStats("small"))
    kept._holder.name = "small"
    with pytest.raises(MillError, match=r"the engine of model small died 1 times.*: it went") as died:
        kept._count_death("it went")
    assert ("memory ran out on this machine: lower models.small.engine_args" in str(died.value)) == bool(kills)


def die(number: int) -> int:
    """Step of a pipeline: one element kills its worker."""
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


REAL = """
import apache_beam as beam
from pipelines.beam_options import beam_options
from pipelines.running import run_pipeline
from tests.test_local_workers import TWO, die
pipeline = beam.Pipeline(options=beam_options(TWO))
pipeline | beam.Create(range(10)) | beam.Reshuffle() | beam.Map(die)
try:
    run_pipeline(pipeline, "score")
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_beams_own_workers() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", REAL], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.startswith("MillError score: a worker process was killed"), done.stderr
    assert done.returncode == 0


NOWHERE = {**os.environ, "CONTROL_API_SERVICE_DESCRIPTOR": 'url: "localhost:1"'}
"""Of a worker that waits for a runner that isn't there."""


def test_workers_are_forked_from_one_process_and_their_ends_are_told(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    failing, waiting = Worker({**os.environ, "WITHOUT": "a runner"}), Worker(NOWHERE)
    assert failing.wait() == 1 and "CONTROL_API_SERVICE_DESCRIPTOR" in capfd.readouterr().err
    assert waiting.poll() is None
    (server,) = worker_server._servers
    assert Path(f"/proc/{waiting.pid}/stat").read_text().split()[3] == str(server._process.pid)
    waiting.kill()
    assert waiting.wait() == waiting.poll() == -signal.SIGKILL

    # Another environment is another process: what a module reads when it is imported has to be that of now.
    monkeypatch.setenv("THOUGHTMILL_TEST", "changed")
    waiting = Worker(NOWHERE)
    (second,) = worker_server._servers
    assert second is not server and server._process.returncode == 0
    second._process.kill()
    assert waiting.wait() == -signal.SIGKILL
    assert waiting.pid is not None
    os.kill(waiting.pid, signal.SIGKILL)
    assert Worker(dict(os.environ)).wait() == 1, "a server that was killed is replaced"
