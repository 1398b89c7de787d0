"""Several processes of a job on one machine: one has the engine, all use it, and a kill at any moment loses nothing."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from augment.engines.protocol import Closing, Generation, GenerationRequest
from augment.feeding import registry
from augment.feeding.shared import owner
from augment.feeding.shared.frames import LENGTH_BYTES, Ask, Made, pack, unpack
from augment.feeding.shared.owner import EngineHost, _sweep, _try_lock

ROOT = Path(__file__).parent.parent
Process = subprocess.Popen[str]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    processes: list[Process] = []

    def go(name: str, count: int, *, job: str = "job", models: str = "m") -> Process:
        command = [sys.executable, "-m", "tests.shared_engine_process"]
        processes.append(
            subprocess.Popen(
                [*command, str(tmp_path), name, f"{tmp_path}/{job}", str(count), models],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
        )
        return processes[-1]

    yield go
    for process in processes:
        process.kill()
        process.wait()
    for line in log(tmp_path):
        if line[0] == "start" and psutil.pid_exists(int(line[3])):
            psutil.Process(int(line[3])).kill()


def log(folder: Path) -> list[list[str]]:
    path = folder / "engines.log"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def lines_until_done(process: Process) -> list[str]:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        if line.strip() == "done":
            return lines
        lines.append(line.strip())
    raise AssertionError(f"the process ended early: {lines[-3:]}")


def end(process: Process) -> None:
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(30) == 0


def expected(name: str, count: int, model: str = "m") -> list[str]:
    refused = f"refused {name}-{model}-0-bad not this one"
    return sorted([refused, *(f"got {name}-{model}-{i}" for i in range(1, count))])


def test_one_process_has_the_engine_and_all_get_theirs(start: Callable[..., Process], tmp_path: Path) -> None:
    processes = {name: start(name, 60) for name in ("a", "b", "c")}
    for name, process in processes.items():
        assert sorted(lines_until_done(process)) == expected(name, 60)
    assert [line[0] for line in log(tmp_path)] == ["start"]
    owning = int(log(tmp_path)[0][2])
    for process in sorted(processes.values(), key=lambda process: process.pid != owning):  # the owner first
        end(process)
    assert [line[0] for line in log(tmp_path)] == ["start", "end"]
    assert not Path(EngineHost(f"{tmp_path}/job", registry.Registry()).address).exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "leave"])
def test_when_the_owner_goes_another_takes_over(start: Callable[..., Process], tmp_path: Path, how: str) -> None:
    names = ("a", "b", "c")
    # The first has little to do where it is to leave in good order while the others are busy.
    processes = {"a": start("a", 30 if how == "leave" else 800)}
    deadline = time.monotonic() + 30
    while not log(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    processes |= {name: start(name, 400) for name in names[1:]}
    for name in names[1:]:
        stdout = processes[name].stdout
        assert stdout is not None and stdout.readline()  # its first answer has come
    if how == "kill":
        processes["a"].kill()
    else:
        lines_until_done(processes["a"])
        end(processes["a"])
    for name in names[1:]:
        found = lines_until_done(processes[name])
        assert sorted(found) == sorted(set(found))
        assert len(set(expected(name, 400)) - set(found)) == 1, "all but the line that was read above"
    starts = [line for line in log(tmp_path) if line[0] == "start"]
    assert len(starts) == 2 and starts[0][2] == str(processes["a"].pid)
    first_engine = int(starts[0][3])
    assert not psutil.pid_exists(first_engine) or psutil.Process(first_engine).status() == psutil.STATUS_ZOMBIE


def test_models_of_a_job_take_turns_across_processes(start: Callable[..., Process], tmp_path: Path) -> None:
    one, two = start("a", 40, models="m,n"), start("b", 40, models="n,m")
    for name, process in (("a", one), ("b", two)):
        found = lines_until_done(process)
        assert sorted(found) == sorted([*expected(name, 40, "m"), *expected(name, 40, "n")])
    running = 0
    for line in log(tmp_path):
        running += 1 if line[0] == "start" else -1
        assert running <= 1, "two engines that each take nine tenths of the memory"
    assert len({line[2] for line in log(tmp_path)}) == 1, "one process has all engines of the job"


def test_another_job_on_the_machine_has_its_own_engine(start: Callable[..., Process], tmp_path: Path) -> None:
    one, other = start("a", 20), start("b", 20, job="other")
    assert sorted(lines_until_done(one)) == expected("a", 20)
    assert sorted(lines_until_done(other)) == expected("b", 20)
    assert sorted(line[2] for line in log(tmp_path)) == sorted([str(one.pid), str(other.pid)])


def test_what_old_jobs_left_is_removed(tmp_path: Path) -> None:
    for name in ("held", "free", "new"):
        (tmp_path / f"{name}.lock").write_text("1")
        (tmp_path / f"{name}.sock").touch()
        if name != "new":
            os.utime(tmp_path / f"{name}.lock", (1, 1))
    held = _try_lock(tmp_path / "held.lock")
    assert held is not None
    _sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["held.lock", "held.sock", "new.lock", "new.sock"]
    held.close()


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    first = _try_lock(path)
    assert first is not None and _try_lock(path) is None
    path.unlink()
    first.close()
    again = _try_lock(path)
    assert again is not None and path.exists()
    again.close()


def test_what_travels_arrives_as_it_was() -> None:
    closing = Closing(reserve_tokens=4, phrase="so", phrase_token_ids=np.array([7], np.uint32))
    request = GenerationRequest(
        key="k", prompt_token_ids=np.array([1, 2**32 - 1], np.uint32), max_tokens=5, stop=("a", "b"), closing=closing
    )
    generation = Generation(
        text="日本\x00", token_ids=np.empty(0, np.uint32), sum_logprobs=None, finish_reason="length", engine_version="1"
    )
    for frame in (Ask(3, request), Made(4, generation)):
        data = pack(frame)
        assert int.from_bytes(data[:LENGTH_BYTES]) == len(data) - LENGTH_BYTES
        back = unpack(data[LENGTH_BYTES:])
        assert type(back) is type(frame) and pack(back) == data
    back = unpack(pack(Ask(3, request))[LENGTH_BYTES:])
    assert isinstance(back, Ask) and back.request.prompt_token_ids.tolist() == [1, 2**32 - 1]
    assert back.request.stop == ("a", "b") and back.request.closing is not None
    assert back.request.prompt_token_ids.dtype == np.uint32 and back.request.prompt_token_ids.flags.writeable


def test_too_many_open_files_for_a_moment_do_not_end_the_sharing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "_ACCEPT_AGAIN_S", 0.0)
    host = EngineHost(f"{tmp_path}/job", registry.Registry())

    class Full(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            asked.append(1)
            if len(asked) == 3:
                host._listener = None  # closed
            raise OSError(errno.EMFILE, "Too many open files")

    asked: list[int] = []
    with Full(socket.AF_UNIX) as listener:
        host._listener = listener
        host._answer(listener)
    assert len(asked) == 3
