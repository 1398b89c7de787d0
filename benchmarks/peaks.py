"""The most memory that processes have had, as the kernel keeps it."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path


class Peaks:
    """The largest that any process started from here has been.

    Asked while they live: the figure that is left of a process when it has ended (`ru_maxrss`) begins with what its
    parent had when it started it.

    Args:
        named: words of the command line of those that count; before a started process has become another program, it
            is a copy of its parent. "": all.
        poll_s: they are looked at so often, seconds.
    """

    def __init__(self, named: str = "", *, poll_s: float) -> None:
        self.largest_bytes = 0
        self._named, self._poll_s = named, poll_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peaks:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(self._poll_s):
            for pid in _descendants(os.getpid()):
                if self._named in _read(Path(f"/proc/{pid}/cmdline")):
                    self.largest_bytes = max(self.largest_bytes, peak_bytes(pid))


def peak_bytes(pid: int) -> int:
    """The most memory that a process has had; 0 where it is gone."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", _read(Path(f"/proc/{pid}/status")), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _descendants(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").glob("*"):
        for child in map(int, _read(task / "children").split()):
            yield child
            yield from _descendants(child)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
