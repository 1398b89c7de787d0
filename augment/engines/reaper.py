"""Ends what an engine left behind: no orphan holds a GPU after its owner was killed.

An engine works in processes of its own, and a process whose parent is killed outright is told nothing. So each engine
has a mark that all its processes carry, and a small watcher, this file run as a script, that waits for the owner to
go and then ends whatever carries the mark. The same search confirms a clean close.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import time
from typing import Any

MARK_VARIABLE = "THOUGHTMILL_ENGINE"
"""In the environment of an engine's processes; `VLLM_PROCESS_NAME_PREFIX` puts the mark into their titles too, because
setting a title overwrites the environment as others see it."""

_POLL_S = 0.5
_GRACE_S = 10.0


def new_mark() -> str:
    """A mark that nothing else carries."""
    return f"{mark_prefix(os.getpid())}{secrets.token_hex(4)}"


def mark_prefix(owner: int) -> str:
    """What the marks of all engines of a process begin with."""
    return f"thoughtmill-{owner}-"


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for doesn't."""
    import psutil  # type: ignore[import-untyped]

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def marked_processes(mark: str) -> list[Any]:
    """The running processes that carry the mark, or one that begins with it, as psutil processes."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            title = process.cmdline()[:1]
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            if (title and mark in title[0]) or process.environ().get(MARK_VARIABLE, "").startswith(mark):
                found.append(process)
        except (psutil.Error, OSError):
            continue  # gone, or not ours to look at
    return found


def end_marked(mark: str, grace_s: float = _GRACE_S) -> None:
    """End all processes that carry the mark: asked first, killed after `grace_s` seconds."""
    import psutil

    for act in ("terminate", "kill"):
        for process in marked_processes(mark):
            with contextlib.suppress(psutil.NoSuchProcess):
                getattr(process, act)()
        # Looked for, not waited for: who started them may want to collect their exit status.
        deadline = time.monotonic() + grace_s
        while marked_processes(mark):
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        else:
            return


def watch(mark: str) -> subprocess.Popen[bytes]:
    """Start a watcher for this process; terminate it once the engine is closed."""
    # A session of its own: what interrupts the terminal's processes must not end the watcher.
    return subprocess.Popen(
        [sys.executable, "-I", __file__, str(os.getpid()), mark],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _main(owner: int, mark: str) -> None:
    while os.getppid() == owner:
        time.sleep(_POLL_S)
    end_marked(mark)


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2])
