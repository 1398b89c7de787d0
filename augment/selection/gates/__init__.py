"""Gates: reasons to reject a trace, each a small file with its thresholds and a check. The table of them.

The select stage asks every gate about every candidate; the first that objects gives the candidate's first reason. A
gate's name, in the config and as a reason, is that of its line here. It is a `gate.Gate`: a frozen section of the
config, with `objects(subject)`.
"""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from augment.selection.gates.contradiction import Contradiction
from augment.selection.gates.gate import Gate
from augment.selection.gates.language import Language
from augment.selection.gates.leakage import Leakage
from augment.selection.gates.loop import Loop
from augment.selection.gates.off_topic import OffTopic
from augment.selection.gates.refusal import Refusal
from augment.selection.gates.too_short import TooShort
from augment.selection.gates.unclosed import Unclosed
from augment.selection.gates.unprintable import Unprintable
from augment.selection.gates.verbatim import Verbatim
from sharding.config import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GatesConfig:
    """Which traces are rejected. Every gate has `enabled` and its own thresholds."""

    # In the order in which they give reasons: what is cut or empty first.
    unclosed: Unclosed = Unclosed()
    too_short: TooShort = TooShort()
    unprintable: Unprintable = Unprintable()
    refusal: Refusal = Refusal()
    leakage: Leakage = Leakage()
    loop: Loop = Loop()
    verbatim: Verbatim = Verbatim()
    language: Language = Language()
    off_topic: OffTopic = OffTopic()
    contradiction: Contradiction = Contradiction()

    def enabled(self) -> dict[str, Gate]:
        """The gates that are applied, by name and in order."""
        return {name: gate for name, gate in vars(self).items() if isinstance(gate, Gate) and gate.enabled}
