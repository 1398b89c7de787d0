"""What every value is given and gives back.

A value looks at one segment at a time, with all traces that passed the gates, and gives each a number: the higher, the
better. To add one, write a class like `Value` in a file of your own and name it in the config, as in
`select: {value: "my_values.py:Brevity"}` or, for an installed module, `value: "my_package.values:Brevity"`. One that
comes with the mill is a module here, named in `BUILT_IN` of `augment.selection.values`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Any, Protocol

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from augment.traces import Trace
from sharding.config import STRICT

NatsAfter = Callable[[Sequence[str], str, int, int], np.ndarray]
"""(prefixes, text, characters to skip, tokens of the longest prefix) → (prefixes, tokens) float32: surprisal in nats of
every token of the text after the skipped characters, when the text is read after each prefix; NaN where both don't fit
into what the scorer reads at once. An empty prefix is none at all. See `difficulty.scorers.Scorer.nats_after`."""


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
    controls: int = Field(
        default=2, ge=2, description="Other segments whose traces each segment is compared with, all they have."
    )
    control_pool: int = Field(default=64, ge=2, description="Segments per tier whose traces controls are taken from.")
    context_tokens: int | None = Field(
        default=None,
        ge=256,
        description="Window in which trace, segment and continuation are read, tokens of the scorer; null: what it can "
        "read at once.",
    )
    scorer: dict[str, Any] | None = Field(
        default=None,
        description="Another scorer than that of difficulty: a section with its keys (scorer, model, revision, ...).",
    )


@plain_dataclass(frozen=True, kw_only=True)
class Trial:
    """One segment with its traces, as a value sees it.

    Attributes:
        segment_id, tier: of the segment.
        source_text: the segment, as much of it as the generator was shown.
        continuation: what follows that in the document and the generator was not shown; "" where nothing does.
        traces: the candidates that passed the gates, in the order of their samples.
        controls: traces of other segments of the same tier; empty unless `Value.needs_controls`.
        trace_tokens: cap on the tokens of a trace of the tier, in the generator's tokenizer.
        grades: a judge's, of the traces; empty without a judge, and for traces that none has seen.
    """

    segment_id: str
    tier: str
    source_text: str
    continuation: str
    traces: Sequence[Trace]
    controls: Sequence[str]
    trace_tokens: int
    grades: Sequence[float | None] = ()


@plain_dataclass(frozen=True, kw_only=True)
class Valuation:
    """The value of one trace: the columns of `sharding.records.Candidate`, which explains them.

    Attributes:
        unvalued: why there is no value, in a word or two; "" where there is one.
    """

    value: float | None
    gain_nats: float | None = None
    control_nats: float | None = None
    hard_gain_nats: float | None = None
    heldout_nats: float | None = None
    unvalued: str = ""


class Value(Protocol):
    """What gives traces their value. Made once per process as `Value(nats_after, threshold_nats)`.

    Attributes:
        needs_continuation: whether it tries traces on text that follows; the last segment of a document then keeps
            its tail back from the generator.
        needs_controls: whether it compares with traces of other segments.
    """

    needs_continuation: bool
    needs_controls: bool

    def valuations(self, trial: Trial) -> Sequence[Valuation]:
        """The valuation of each trace of the trial, in order.

        That of a trace depends on the trace and on what the trial says of the segment, not on the other traces. The
        traces of a control are valued as well, in a trial that is otherwise the same: they show what choosing brings
        among traces that are not about the segment.
        """
