"""Values: what a trace is worth, so that selection can choose among a segment's candidates. A joint to add to.

A value looks at one segment at a time, with all traces that passed the gates, and gives each a number: the higher, the
better. To add one, write a class like `Value` in a file of your own and name it in the config, as in
`select: {value: "my_values.py:Brevity"}` or, for an installed module, `value: "my_package.values:Brevity"`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass as plain_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from augment.thoughts import Trace
from sharding.config import STRICT
from sharding.errors import RequestError

NatsAfter = Callable[[Sequence[str], str, int], np.ndarray]
"""(prefixes, text, characters to skip) → (prefixes, tokens) float32: surprisal in nats of every token of the text after
the skipped characters, when the text is read after each prefix. An empty prefix is none at all. See
`difficulty.scorers.Scorer.nats_after`."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GainConfig:
    """How values that are gains are measured."""

    continuation_tokens: int = Field(
        default=256, ge=2, description="Text after the segment that traces are tried on, training tokens."
    )
    hold_back_tokens: int = Field(
        default=128,
        ge=0,
        description="Tail of a document's last segment that its prompt does not show; at most a third of the segment.",
    )
    controls: int = Field(default=2, ge=1, description="Traces of other segments that each segment is compared with.")
    control_pool: int = Field(default=64, ge=2, description="Traces per tier that controls are taken from.")


@plain_dataclass(frozen=True, kw_only=True)
class Case:
    """One segment with its traces, as a value sees it.

    Attributes:
        segment_id, tier: of the segment.
        source_text: the segment, as much of it as the generator was shown.
        continuation: what follows that in the document and the generator was not shown; "" where nothing does.
        traces: the candidates that passed the gates, in the order of their samples.
        controls: traces of other segments of the same tier; empty unless `Value.needs_controls`.
    """

    segment_id: str
    tier: str
    source_text: str
    continuation: str
    traces: Sequence[Trace]
    controls: Sequence[str]


@plain_dataclass(frozen=True, kw_only=True)
class Worth:
    """What one trace is worth: the columns of `sharding.records.Candidate`, which explains them."""

    value: float | None
    gain_nats: float | None = None
    control_nats: float | None = None
    hard_gain_nats: float | None = None
    heldout_nats: float | None = None


class Value(Protocol):
    """What gives traces their worth. Made once per process as `Value(nats_after, threshold_nats)`.

    Attributes:
        needs_continuation: whether it tries traces on text that follows; the last segment of a document then keeps
            its tail back from the generator.
        needs_controls: whether it compares with traces of other segments.
    """

    needs_continuation: bool
    needs_controls: bool

    def worths(self, case: Case) -> Sequence[Worth]:
        """The worth of each trace of the case, in order; depends on the case alone."""


BUILT_IN = {
    "continuation_gain": "augment.values.gain:ContinuationGain",
    "self_gain": "augment.values.gain:SelfGain",
    "length": "augment.values.length:Length",
}
"""Names a config can use, and where they are; "none" beside them."""


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
    where, colon, attribute = BUILT_IN.get(name, name).rpartition(":")
    if not colon:
        raise RequestError(
            f"select.value: {name!r} is none of none, {', '.join(sorted(BUILT_IN))}; one of your own is named as "
            '"file.py:Class" or "module:Class"'
        )
    try:
        module = _load_file(where) if where.endswith(".py") else importlib.import_module(where)
        found = getattr(module, attribute)
    except (ImportError, OSError, AttributeError, SyntaxError) as error:
        raise RequestError(f"select.value: {name!r} can't be loaded: {error}") from error
    for needed in ("needs_continuation", "needs_controls", "worths"):
        if not hasattr(found, needed):
            raise RequestError(f"select.value: {name!r} has no {needed!r}; see augment.values.Value for its shape")
    return found


def value_digest(name: str) -> str:
    """A hash of the code of a user's own value in a file, so that a changed one is run anew; "" for the others."""
    where = name.rpartition(":")[0]
    return hashlib.blake2b(Path(where).read_bytes(), digest_size=8).hexdigest() if where.endswith(".py") else ""


def _load_file(path: str) -> Any:
    name = f"thoughtmill_value_{hashlib.blake2b(path.encode(), digest_size=8).hexdigest()}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
