"""Being stopped: Ctrl-C and a scheduler's signals end a command in one line, with its lease given back.

    signal ─► Stopped, on the main thread ─► workers end, engines close, the lease is given back ─► a line, exit
                └► a second signal, or `GRACE_S`: the same without waiting for anything

SIGTERM is a notice, as spot machines get it: requests at an engine may go on for `feeding.drain_seconds`, which come on
top of `GRACE_S`.

Nothing is published on the way, so whatever was half made is made again. What other threads say meanwhile, such as
those of a pipeline whose engine has just been closed, is no news, and is not shown.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import IO

SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP"}
"""What ends a command → what a person calls it."""

GRACE_S = 20.0
"""A clean end may take so long: schedulers kill 30 seconds after they have asked."""

_WORKER_MAIN = b"pipelines.local_worker_main"
"""In the command of every worker process, and of the child of this process that they are forked from."""

_POLL_S = 0.1

_streams: dict[str, IO[str]] = {}
_drain_s = [0.0]
_received: list[int] = []


class Stopped(BaseException):
    """The command is to end. No `Exception`: whatever is caught on the way, this is not.

    Attributes:
        signal: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = signal.Signals(number)

    @property
    def exit_code(self) -> int:
        """As a shell has it: 128 and the signal's number."""
        return 128 + self.signal


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Has the signals raise `Stopped` within the block.

    One that is ignored already, as SIGHUP under nohup, stays so. On another thread than the main one nothing changes.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def draining(seconds: float) -> Iterator[None]:
    """Has a clean end take so much longer, should SIGTERM come within the block."""
    _drain_s.append(seconds)
    try:
        yield
    finally:
        _drain_s.pop()


def on_notice() -> bool:
    """Whether SIGTERM has told this process to end."""
    return signal.SIGTERM in _received


def _stop(number: int, frame: FrameType | None) -> None:
    del frame
    _received.append(number)
    for other in SIGNALS:
        if signal.getsignal(other) is not signal.SIG_IGN:
            signal.signal(other, _stop_now)
    _hush()
    # What is raised within a destructor is lost, and an engine may hang: then the end comes from here.
    timer = threading.Timer(GRACE_S + _drain_s[-1] * on_notice(), _end_now, (128 + number,))
    timer.daemon = True
    timer.start()
    raise Stopped(number)


def _stop_now(number: int, frame: FrameType | None) -> None:
    del frame
    _end_now(128 + number)


def _end_now(code: int) -> None:
    end_workers()
    with contextlib.suppress(Exception):
        from sharding.storage import lease  # not before: a command that only prints is there at once

        lease.give_back_all()
    os._exit(code)


def _hush() -> None:
    """Let nobody but the main thread's last line speak: threads of a pipeline that is torn down fail one by one."""
    logging.disable(logging.CRITICAL)
    threading.excepthook = lambda failed: None
    sys.unraisablehook = lambda failed: None
    if sys.stderr is not None:
        _streams["stderr"] = sys.stderr
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - until the process ends


def speak_again() -> None:
    """Give standard error back, for the last line."""
    if "stderr" in _streams:
        sys.stderr = _streams.pop("stderr")


def end(stopped: Stopped) -> None:
    """End the process. Threads of a pipeline would hold up an exit that waits for them."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(stopped.exit_code)


def let_workers_end() -> None:
    """Tell the worker processes that this one has started to end, and return when they have.

    They have what time `draining` gives; who waits here is ended by the timer of the signal at the latest.
    """
    for pid in (left := _workers()):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGTERM)
    while left := [pid for pid in left if _is_running(pid)]:
        time.sleep(_POLL_S)


def end_workers() -> None:
    """Kill the worker processes that this one has started, on systems that tell which they are."""
    for pid in _workers():
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _is_running(pid: int) -> bool:
    with contextlib.suppress(OSError, IndexError):
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        return stat.rpartition(")")[2].split()[0] != "Z"
    return False


def _workers() -> list[int]:
    """The worker processes that this one has started, by their ids."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # it has just ended
            parents[int(path.parent.name)] = int(path.read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    found = []
    for pid in parents:
        above = parents[pid]
        while above in parents and above != os.getpid():
            above = parents[above]
        with contextlib.suppress(OSError):
            if above == os.getpid() != parents[pid] and _WORKER_MAIN in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found
