"""Ctrl-C and a scheduler's signals: one line that says what is safe, the code of a shell, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from sharding.storage.lease import Lease, give_back_all

ROOT = Path(__file__).parent.parent
TWO = ("--", "--direct_num_workers=2", "--direct_running_mode=multi_processing")


def heed_signals() -> None:
    """Before the command starts: the tests themselves may have been started by nohup or in the background."""
    for sent in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sent, signal.SIG_DFL)


def started(*command: str, **kwargs: Any) -> subprocess.Popen[str]:
    """A process in a group of its own, as a terminal starts one."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "300"}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
        preexec_fn=heed_signals,
        **kwargs,
    )


def group_of(leader: int) -> list[psutil.Process]:
    """The running processes of a group."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.1)


@pytest.fixture
def slow_run(
    tmp_path: Path, write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]]
) -> list[str]:
    """The command of a run that generates for minutes."""
    source = write_jsonl([{"id": str(i), "text": f"Document {i} says {i * i}. " * 40} for i in range(40)])
    engine = {"capacity": 4, "tokens_per_second": 40}
    tree = rehearsal_config(
        source,
        models={"pretend": {"engine": "rehearsal", "name": "pretend", "engine_args": engine}},
        ledger={"flush_rows": 2, "flush_seconds": 0.2},
    )
    path = tmp_path / "mill.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return [sys.executable, "-m", "pipelines.cli", "run", str(path)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "sent", "name"),
    [
        ((), signal.SIGINT, "Ctrl-C"),
        (TWO, signal.SIGINT, "Ctrl-C"),
        (TWO, signal.SIGTERM, "SIGTERM"),
        ((), signal.SIGHUP, "SIGHUP"),
    ],
    ids=["ctrl-c", "ctrl-c two processes", "sigterm two processes", "sighup"],
)
def test_a_run_that_is_stopped_says_what_is_safe(
    slow_run: list[str], tmp_path: Path, options: tuple[str, ...], sent: signal.Signals, name: str
) -> None:
    ledger = tmp_path / "out" / "ledger"
    run = started(*slow_run, *options)
    wait_for(lambda: len(list(ledger.glob("*.arrow"))) > 1, run)
    assert (tmp_path / "out" / "stages").is_dir() and len(group_of(run.pid)) > 2 * bool(options)
    began = time.monotonic()
    if sent == signal.SIGINT:
        os.killpg(run.pid, sent)  # a terminal sends it to all of them
    else:
        run.send_signal(sent)
    said, complained = run.communicate(timeout=60)
    assert run.returncode == 128 + sent, complained
    assert time.monotonic() - began < 30
    assert "Traceback" not in complained and said == ""
    stopped = [line for line in complained.splitlines() if line.startswith("stopped")]  # a folder's name says it too
    assert len(stopped) == 1 and f"stopped by {name}: " in stopped[0], complained
    assert str(ledger) in stopped[0] and f"thoughtmill run {tmp_path / 'mill.yaml'}" in stopped[0]
    assert complained.splitlines()[-1] == stopped[0], complained
    end = time.monotonic() + 5
    while left := group_of(run.pid):
        assert time.monotonic() < end, left
        time.sleep(0.1)
    leases = [path for path in (tmp_path / "out").rglob("*") if "lease" in path.name.lower()]
    assert not leases, "who comes next need not wait"


WAITS = """
import sys, time
from pipelines import stopping
from sharding.storage.lease import Lease
class Hangs:
    def __enter__(self): return self
    def __exit__(self, *error):
        if "hang" in sys.argv: time.sleep(600)
stopping.GRACE_S = 1.0
with stopping.heard():
    try:
        with Lease(sys.argv[1], "test"), Hangs():
            print("at work", flush=True)
            time.sleep(600)
    except stopping.Stopped as stopped:
        stopping.speak_again()
        print("told", file=sys.stderr)
        stopping.end(stopped)
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("how", ["well", "hang", "twice"])
def test_the_lease_is_given_back_even_where_the_end_hangs(tmp_path: Path, sent: signal.Signals, how: str) -> None:
    waits = started(sys.executable, "-c", WAITS, str(tmp_path / "out"), "hang" if how != "well" else "")
    assert waits.stdout is not None and waits.stdout.readline() == "at work\n"
    assert list((tmp_path / "out").rglob("*"))
    waits.send_signal(sent)
    if how == "twice":
        time.sleep(0.3)
        waits.send_signal(sent)
    _, complained = waits.communicate(timeout=120)
    assert (waits.returncode, complained) == (128 + sent, "told\n" if how == "well" else "")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_what_was_ignored_stays_ignored(tmp_path: Path) -> None:
    ignoring = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{WAITS}"
    waits = started(sys.executable, "-c", ignoring, str(tmp_path / "out"))
    assert waits.stdout is not None and waits.stdout.readline() == "at work\n"
    waits.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert waits.poll() is None, "it runs under nohup"
    waits.send_signal(signal.SIGTERM)
    waits.communicate(timeout=120)
    assert waits.returncode == 128 + signal.SIGTERM


def test_a_lease_that_another_has_taken_over_is_not_given_back(tmp_path: Path) -> None:
    with Lease(str(tmp_path), "test") as held:
        path = Path(held.url)
        others = json.loads(path.read_text(encoding="utf-8")) | {"token": "another"}
        path.write_text(json.dumps(others), encoding="utf-8")
        give_back_all()
        assert json.loads(path.read_text(encoding="utf-8"))["token"] == "another"
