"""What this process has done so far, in a few numbers: for a person who watches, never for a result.

Steps add to it as they go; `watch.progress` reads it where the runner works in the same process. A count may come
twice, from a bundle that was tried again. Nothing is locked: an addition may be lost, and that is all that can happen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

_doing: list[str] = []
_begun: list[str] = []
_counts: Counter[str] = Counter()


def add(**numbers: int) -> None:
    """Add to numbers by name, such as `add(segments=3)`."""
    _counts.update(numbers)


def read() -> dict[str, int]:
    """The numbers so far."""
    return dict(_counts)


def clear() -> None:
    """Begin anew."""
    _counts.clear()
    _begun.clear()


@contextmanager
def at(what: str) -> Iterator[None]:
    """What takes a while and has no numbers, such as loading a model, for as long as it does."""
    _doing.append(what)
    _begun.append(what)
    try:
        yield
    finally:
        _doing.remove(what)


def doing() -> str:
    """What is under way of that kind; "" where nothing is."""
    return ", ".join(dict.fromkeys(_doing))


def begun() -> list[str]:
    """What of that kind has begun since this was last asked; it may have ended again."""
    found = list(_begun)
    del _begun[: len(found)]
    return found
