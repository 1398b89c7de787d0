"""Values: how much a trace helps, so that selection can choose among a segment's candidates. The table of them.

A value is a class like `protocol.Value`: it is made as `Class(nats_after, threshold_nats)`, says what it tries traces
on by `needs_continuation` and `needs_controls`, and has `valuations(trial)`, a `protocol.Valuation` for each trace.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sharding.errors import RequestError
from sharding.own_code import code_digest, load_named

BUILT_IN = {
    "continuation_gain": "augment.selection.values.gain:ContinuationGain",
    "self_gain": "augment.selection.values.gain:SelfGain",
    "judge": "augment.selection.values.judge:JudgedGain",
    "gain_and_judge": "augment.selection.values.gain:ContinuationGain",
    "length": "augment.selection.values.length:Length",
}
"""Names a config can use, and where they are; "none" beside them."""


JUDGED = ("judge", "gain_and_judge")
"""The values for which a judge grades traces: as the value, and as a gate before the gain."""


def needs_continuation(name: str) -> bool:
    """Whether the value of this name tries traces on text that follows the segment."""
    return name != "none" and bool(value_class(name).needs_continuation)


def needs_controls(name: str) -> bool:
    """Whether the value of this name compares traces with those of other segments."""
    return name != "none" and bool(value_class(name).needs_controls)


@lru_cache(maxsize=16)
def value_class(name: str) -> Any:
    """The class of a value: a built-in one by name, or the user's own as "file.py:Class" or "module:Class".

    Raises:
        RequestError: there is no such value, or it is not shaped like `Value`.
    """
    full = BUILT_IN.get(name, name)
    if ":" not in full:
        raise RequestError(
            f"select.value: {name!r} is none of none, {', '.join(sorted(BUILT_IN))}; one of your own is named as "
            '"file.py:Class" or "module:Class"'
        )
    found = load_named(full, "value", "select.value")
    for needed in ("needs_continuation", "needs_controls", "valuations"):
        if not hasattr(found, needed):
            raise RequestError(
                f"select.value: {name!r} has no {needed!r}; see augment.selection.values.protocol.Value for its shape"
            )
    return found


def value_digest(name: str) -> str:
    """A hash of the code of a user's own value in a file, so that a changed one is run anew; "" for the others."""
    return code_digest(name)
