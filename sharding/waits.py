"""What this process waits for on others, in words: for a person who watches, never for a result.

`sharding.models.server_pool` says for which servers it waits; heartbeats carry that to `thoughtmill status`, and
`watch.progress` reads it where the runner works in the same process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from sharding.storage.json_files import Number


class Wait(msgspec.Struct):
    """A wait as JSON has it, in a heartbeat or a snapshot that anyone may have written.

    Attributes:
        who, reason: what is waited for, and what it said.
        since, until: Unix times; when it began, and when it is given up.
    """

    who: str
    reason: str
    since: Number
    until: Number


_lock = threading.Lock()
_waits: dict[object, dict[str, Any]] = {}


def begin(waiter: object, *, who: str, reason: str, since: float, until: float) -> dict[str, Any]:
    """Note that `waiter` waits, or for what now, as a `Wait` has it; returns what is noted."""
    wait = {"who": who, "reason": reason, "since": since, "until": until}
    with _lock:
        _waits[waiter] = wait
    return wait


def end(waiter: object) -> None:
    """It no longer waits; nothing where it didn't."""
    with _lock:
        _waits.pop(waiter, None)


def current() -> list[dict[str, Any]]:
    """What is waited for now, as JSON values."""
    with _lock:
        return list(_waits.values())


def told(wait: Mapping[str, Any], now: float) -> str:
    """A wait in words, at the Unix time `now`."""
    return (
        f"{wait['who']} for {_duration(now - wait['since'])}, given up after {_duration(wait['until'] - wait['since'])}"
        f": {wait['reason']}"
    )


def all_told(found: Iterable[Mapping[str, Any]]) -> list[str]:
    """The waits of several processes in words, each once: the longest of those that are for one thing."""
    now, longest = time.time(), {}
    for wait in sorted(found, key=lambda wait: -wait["since"]):
        longest[wait["who"], wait["reason"]] = wait
    return [told(wait, now) for wait in longest.values()]


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
