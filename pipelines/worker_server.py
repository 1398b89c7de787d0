"""The process that Beam's worker processes are forked from (`pipelines.local_worker_main`), as their parent sees it.

    start ─► server imports while the pipeline is built ─► Beam starts a worker ─► fork ─► wait ─► exit code

One server does for all stages of a run, and ends with this process. Where the environment or the current folder has
changed since, another takes its place: a worker has them as they are now.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from apache_beam.runners.portability import local_job_service

from pipelines.local_worker_main import NUMBER, QUIET

_MAIN = "pipelines.local_worker_main"
_PACKAGES = ("augment", "difficulty", "pipelines", "sharding")

_lock = threading.Lock()
_servers: list[WorkerServer] = []


class WorkerServer:
    """A server of worker processes. It imports what this process has imported of ours, and Beam's worker.

    Args:
        tokenizer: the one that its workers will load, or nothing.
    """

    def __init__(self, tokenizer: str) -> None:
        self._made_in, self.tokenizer = _surroundings(), tokenizer
        self.channel, theirs = socket.socketpair()
        # Not what only the command line needs.
        modules = [
            name
            for name in tuple(sys.modules)
            if name.partition(".")[0] in _PACKAGES and not name.startswith("pipelines.cli")
        ]
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _MAIN, str(theirs.fileno()), tokenizer, *modules],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    def does(self, tokenizer: str) -> bool:
        """Whether it runs, its workers are as those of a new one would be, and it has the tokenizer, if one is said."""
        return tokenizer in ("", self.tokenizer) and self._process.poll() is None and self._made_in == _surroundings()

    def close(self) -> None:
        """Have it end. Its workers go on."""
        self.channel.close()
        self._process.wait()


class Worker:
    """A worker process, as `subprocess.Popen` would have made it of a command.

    Attributes:
        pid: its id.
        returncode: None until it was seen to have ended; of one that was killed the signal's number, below 0.
    """

    returncode: int | None = None

    def __init__(self, environment: Mapping[str, str]) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        self.pid = self._forked(environment)
        if self.pid is None:  # something has ended the server
            close()
            self.pid = self._forked(environment)
        if self.pid is None:
            self.returncode = -signal.SIGKILL

    def wait(self) -> int:
        """Wait for its end; its exit code."""
        if self.returncode is None:
            code = self._number()
            # A server ends before its workers only if something has ended it.
            self.returncode = -signal.SIGKILL if code is None else code
        self._own.close()
        return self.returncode

    def poll(self) -> int | None:
        """Its exit code, if it was seen to have ended."""
        return self.returncode

    def kill(self) -> None:
        """Kill it."""
        if self.pid is not None:
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)

    def _forked(self, environment: Mapping[str, str]) -> int | None:
        self._own, theirs = socket.socketpair()
        with contextlib.suppress(OSError), theirs:
            socket.send_fds(_start().channel, [b"\0"], [theirs.fileno(), 1, 2])
            self._own.sendall(json.dumps(dict(environment)).encode())
            self._own.shutdown(socket.SHUT_WR)
        return self._number()

    def _number(self) -> int | None:
        data = b""
        while len(data) < NUMBER.size:
            try:
                more = self._own.recv(NUMBER.size - len(data))
            except OSError:
                more = b""
            if not more:
                return None
            data += more
        number: int = NUMBER.unpack(data)[0]
        return number


def start(tokenizer: str = "") -> None:
    """See that there is a server: it imports, and loads a tokenizer, while this process does something else."""
    _start(tokenizer)


@contextlib.contextmanager
def forked_workers(*, quiet: bool) -> Iterator[None]:
    """Has Beam's local runner take its worker processes from the server.

    Args:
        quiet: they keep their log to the runner.
    """

    def popen(command: str, *, shell: bool, env: Mapping[str, str]) -> Worker:
        del command, shell
        return Worker({**env, QUIET: "1"} if quiet else env)

    before: Any = local_job_service.subprocess
    local_job_service.subprocess = SimpleNamespace(Popen=popen)
    try:
        yield
    finally:
        local_job_service.subprocess = before


def _start(tokenizer: str = "") -> WorkerServer:
    with _lock:
        if _servers and not _servers[0].does(tokenizer):
            _servers.pop().close()
        if not _servers:
            _servers.append(WorkerServer(tokenizer))
        return _servers[0]


def _surroundings() -> tuple[str, dict[str, str]]:
    folder = ""
    with contextlib.suppress(OSError):  # it may be gone
        folder = os.getcwd()  # noqa: PTH109 - as it is, not as a path
    return folder, dict(os.environ)


@atexit.register
def close() -> None:
    """See the server's end, so that nothing of this process is left."""
    with _lock:
        while _servers:
            _servers.pop().close()
