"""Faults of runners: each is one line with the way out, and ends the run soon."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from grpc import RpcError

from pipelines import runner_faults
from pipelines.beam_options import beam_options
from pipelines.runner_faults import told, uses_loopback, wait_watched, without_proxy
from pipelines.running import run_pipeline
from sharding.errors import MillError, RequestError
from tests.test_conformance import prism

EMBEDDED = "--job_endpoint=embed"

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
        (ValueError('Unable to parse binary URL "/opt/x". If using'), "--prism_location names no file that is here"),
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


def test_threads_that_notice_the_end_late_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that minds a channel failed after the line was told, with a traceback."""
    said: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda failed: said.append(failed.exc_type.__name__))
    monkeypatch.setattr(runner_faults, "POLL_S", 0.05)
    with pytest.raises(MillError, match="its job server is gone"):
        wait_watched(_Job(server_is_there=False), "SomeRunner")
    for kind in (RpcError, ValueError):
        thread = threading.Thread(target=_raise, args=(kind,))
        thread.start()
        thread.join()
    assert said == ["ValueError"]


def _raise(kind: type[Exception]) -> None:
    raise kind


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


def test_loopback_that_is_not_there_is_said_before_a_pipeline_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner_faults.check_loopback()

    def unreachable(*_: object, **__: object) -> socket.socket:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    two = beam_options(["--direct_num_workers=2", "--direct_running_mode=multi_processing"])
    for options in (two, beam_options(["--runner=PrismRunner"]), beam_options(["--runner=PortableRunner", EMBEDDED])):
        with (
            pytest.raises(
                MillError, match=r"score: .* localhost can't be reached here .*Network is unreachable.*lo up"
            ),
            beam.Pipeline(options=options) as pipeline,
        ):
            pipeline | beam.Create([1])
            run_pipeline(pipeline, "score")
    for options in ([], ["--runner=DataflowRunner"], ["--runner=PortableRunner", "--job_endpoint=far:1"]):
        assert not uses_loopback(beam_options(options))


@pytest.mark.slow
def test_a_machine_without_loopback(tmp_path: Path, byte_tokenizer: str) -> None:
    """Two processes waited for each other without a word; one does without."""
    apart = ["unshare", "--net", "--map-root-user"]
    if shutil.which(apart[0]) is None or subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespace of its own can be had here")
    said = {}
    for workers in ("2", "1"):
        process = _command(tmp_path, byte_tokenizer, words=["--workers", workers], before=apart)
        try:
            said[workers], _ = process.communicate(timeout=60)
        finally:
            _end(process)
        assert process.returncode == (workers == "2"), said
    assert "error score: worker processes reach their runner over loopback" in said["2"], said
    assert "Traceback" not in said["2"] and len(said["2"].splitlines()) < 8, said


def _command(
    folder: Path,
    tokenizer: str,
    *options: str,
    words: Sequence[str] = (),
    before: Sequence[str] = (),
    **environment: str,
) -> subprocess.Popen[str]:
    (folder / "c.yaml").write_text(CONFIG.replace("TOKENIZER", tokenizer), encoding="utf-8")
    if not (folder / "raw.jsonl").exists():
        (folder / "raw.jsonl").write_text('{"text": "A few words about the weather."}\n' * 40, encoding="utf-8")
    return subprocess.Popen(
        [*before, sys.executable, "-m", "pipelines.cli", "score", "c.yaml", *words, "--", *options],
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
