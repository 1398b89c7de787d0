"""Faults of runners: each is one line with the way out, and ends the run soon."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines import runner_faults
from pipelines.beam_options import beam_options
from pipelines.runner_faults import told, wait_watched, without_proxy
from sharding.errors import MillError, RequestError
from tests.test_conformance import prism

CONFIG = """
source: {format: jsonl, path: raw.jsonl, text_field: text}
output: out
tokenizer: TOKENIZER
difficulty: {scorer: rehearsal, segment_tokens: 64}
models: {pretend: {engine: rehearsal, name: pretend}}
budget:
  policy: adaptive
  thinking_tokens_per_source_token: 0.5
  tiers: [{name: skip}, {name: brief, model: pretend, prompt: brief, max_tokens: 64}]
pack: {sequence_length: 256}
"""


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--runner=DaskRunner"], "DaskRunner can't run the mill: it computes a pipeline's last collection alone"),
        (["--runner=DataflowRuner"], "is no runner of Beam; did you mean DataflowRunner?"),
        (["--runner=DataflowRunner"], r"--runner=DataflowRunner: .*Missing required option: region"),
        (
            ["--runner=PortableRunner", "--environment_type=EXTERNAL", "--job_endpoint=localhost:1"],
            "external_service_address is required",
        ),
        (["--runner=nowhere.to.be.Found"], "Found is no runner of Beam"),
    ],
)
def test_a_runner_that_can_t_work_is_refused_before_anything_begins(options: list[str], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        runner_faults.check(beam_options(options))


def test_a_job_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_faults, "ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"127.0.0.1:{server.getsockname()[1]}"
        options = beam_options(["--runner=PortableRunner", f"--job_endpoint={endpoint}"])
        runner_faults.check_answers(options)
    with pytest.raises(RequestError, match=f"--job_endpoint={endpoint}: no job server answers there"):
        runner_faults.check_answers(options)
    pool = ["--environment_type=EXTERNAL", f"--environment_config={endpoint}"]
    with pytest.raises(RequestError, match=f"--environment_config={endpoint}: no pool of workers answers there"):
        runner_faults.check_answers(beam_options(["--runner=PrismRunner", *pool]))
    runner_faults.check_answers(beam_options(["--runner=FlinkRunner", *pool]))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("Unable to fetch remote prism binary at X: no"), "make prism.*--prism_location"),
        (RuntimeError("Unable to fetch remote job server jar at X"), "--spark_job_server_jar"),
        (
            RuntimeError("bundle inst013 stage-018 failed:SDK worker disconnected: worker[x], 1 active instructions"),
            "one of its workers ended in the middle of a step.*what was generated is in the ledger",
        ),
        (RuntimeError("<_MultiThreadedRendezvous ... Stream removed (Socket closed)>"), "job server is gone"),
        (
            RuntimeError("prism worker[x] didn't get control connection to localhost:1 after 1m0s"),
            "no worker came to it",
        ),
        (RuntimeError("StatusCode.UNAVAILABLE: failed to connect to all addresses"), "can't be reached"),
    ],
)
def test_what_a_runner_raises_is_put_into_words(error: Exception, says: str) -> None:
    found = told(error, "SomeRunner")
    assert found is not None
    assert str(found).startswith("SomeRunner: ")
    with pytest.raises(MillError, match=says):
        raise found


def test_what_is_not_known_is_left_as_it_is() -> None:
    assert told(ValueError("a bug of ours"), "SomeRunner") is None


class _Job:
    """A job whose end never comes, or that says it has no state."""

    def __init__(self, server_is_there: bool) -> None:
        self._there = server_is_there
        self.ended = threading.Event()

    def wait_until_finish(self) -> str:
        self.ended.wait()
        return "DONE"

    @property
    def state(self) -> str:
        if not self._there:
            raise RuntimeError("no server")
        return "RUNNING"


def test_a_job_is_waited_for_as_long_as_its_server_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_faults, "POLL_S", 0.05)
    with pytest.raises(MillError, match="SomeRunner: its job server is gone"):
        wait_watched(_Job(server_is_there=False), "SomeRunner")
    job = _Job(server_is_there=True)
    threading.Timer(0.5, job.ended.set).start()
    assert wait_watched(job, "SomeRunner") == "DONE"


def test_loopback_goes_through_no_proxy() -> None:
    plain = {"no_proxy": "example.org"}
    without_proxy(plain)
    assert plain == {"no_proxy": "example.org"}, "nobody set a proxy"
    set_up = {"http_proxy": "http://proxy:3128", "NO_PROXY": "example.org"}
    without_proxy(set_up)
    assert set_up["no_proxy"] == "example.org,localhost,127.0.0.1,::1"
    everything = {"https_proxy": "http://proxy:3128", "no_proxy": "*"}
    without_proxy(everything)
    assert everything["no_proxy"] == "*"


def _command(folder: Path, tokenizer: str, *options: str, **environment: str) -> subprocess.Popen[str]:
    (folder / "c.yaml").write_text(CONFIG.replace("TOKENIZER", tokenizer), encoding="utf-8")
    if not (folder / "raw.jsonl").exists():
        (folder / "raw.jsonl").write_text('{"text": "A few words about the weather."}\n' * 40, encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "score", "c.yaml", "--", *options],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(Path.cwd())} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


@pytest.mark.slow
def test_worker_processes_are_quiet_and_need_no_proxy(tmp_path: Path, byte_tokenizer: str) -> None:
    nowhere = "http://127.0.0.1:9"
    process = _command(
        tmp_path, byte_tokenizer, "--direct_running_mode=multi_processing", "--direct_num_workers=2",
        http_proxy=nowhere, https_proxy=nowhere, no_proxy="",
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=120)
    finally:
        _end(process)
    assert process.returncode == 0, said
    assert "INFO" not in said and "WARNING" not in said
    assert len(said.splitlines()) < 8, said


@pytest.mark.slow
def test_a_run_whose_job_server_is_killed_ends_with_a_line(tmp_path: Path, byte_tokenizer: str) -> None:
    lines = "".join(f'{{"text": "Document {i} says something of the weather in the north."}}\n' for i in range(100_000))
    (tmp_path / "raw.jsonl").write_text(lines, encoding="utf-8")
    process = _command(tmp_path, byte_tokenizer, "--runner=PrismRunner", f"--prism_location={prism()}")
    try:
        server = _child_called("prism", process.pid)
        time.sleep(3)  # its job has begun
        assert process.poll() is None
        os.kill(server, signal.SIGKILL)
        said, _ = process.communicate(timeout=60)
    finally:
        _end(process)
    assert process.returncode == 1, said
    assert "error score: PrismRunner: its job server is gone" in said
    assert "Traceback" not in said, said
    assert not (tmp_path / "out" / "stages" / "score" / "MANIFEST.json").exists()


def _child_called(name: str, parent: int) -> int:
    """The child of a process with that name, once there is one."""
    for _ in range(600):
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                pid, _, rest = stat.read_text(encoding="utf-8").partition(" (")
            except OSError:
                continue
            called, _, fields = rest.rpartition(") ")
            if called == name and int(fields.split()[1]) == parent:
                return int(pid)
        time.sleep(0.1)
    raise AssertionError(f"no {name} was started")


def _end(process: subprocess.Popen[Any]) -> None:
    """It and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
