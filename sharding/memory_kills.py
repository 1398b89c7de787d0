"""How often the system has killed a process because memory ran out: so that a death can be told as what it was."""

from __future__ import annotations

import contextlib
from pathlib import Path

_COUNTS = (Path("/proc/vmstat"), Path("/sys/fs/cgroup/memory.events"))


def kills_for_memory() -> int:
    """Processes killed for memory since the system, or this container, has started; 0 where it doesn't say."""
    kills = 0
    for path in _COUNTS:
        with contextlib.suppress(OSError, ValueError):
            counts = dict(line.split() for line in path.read_text(encoding="utf-8").splitlines())
            kills += int(counts.get("oom_kill", 0))
    return kills
