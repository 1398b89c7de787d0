"""The labelled traces that gates are measured on: `gate_traces/LANGUAGE.jsonl`, written by hand for this project.

A line is a segment, `{"segment": name, "text": ...}`, or a trace about one: `{"about": name, "class": ..., "kind": ...,
"gate": ..., "trace": ...}`. The class is good, bait (good, and looks like what a gate looks for: its kind) or failure;
the gate is the one that has to object, null where none may. A trace is a text, or a list of texts and of
`[text, times]`, so that a loop can be read. Those in the folders `second` and `third` were written once the gates had
been mended by the earlier ones, and judged before anything was changed; those in `fourth` are for the gate
`contradiction`, and were written before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from augment.selection.gates import GatesConfig
from augment.selection.gates.contradiction import Contradiction
from augment.selection.gates.gate import Subject
from augment.traces import Trace
from sharding.hashing import fraction_of

FOLDER = Path(__file__).parent / "gate_traces"

EVERY_GATE = GatesConfig(contradiction=Contradiction(enabled=True))
"""Those that are off unless asked for, too."""


@dataclass(frozen=True, kw_only=True)
class LabelledTrace:
    """A trace with what is right to do with it.

    Attributes:
        expected: the gate that has to object, if any.
        written: the set it belongs to: "first", "second", "third" or "fourth".
    """

    language: str
    class_: str
    kind: str
    expected: str | None
    written: str
    segment: str
    text: str

    @property
    def held_out(self) -> bool:
        """Whether gates may not be tuned on it: half of all, by the text's hash."""
        return fraction_of(self.text) >= 0.5

    def subject(self, segment: str) -> Subject:
        """The trace as if it were about a segment."""
        trace = Trace(text=self.text, closed="natural", finish_reason="stop", thought_tokens=100)
        return Subject(trace=trace, source_text=segment, prompt="expert")

    def objections(self, config: GatesConfig) -> list[str]:
        """The gates that object, in their order."""
        subject = self.subject(self.segment)
        return [name for name, gate in config.enabled().items() if gate.objects(subject)]


def labelled_traces() -> list[LabelledTrace]:
    """All of them, language by language."""
    return [trace for path in sorted(FOLDER.rglob("*.jsonl")) for trace in _read(path)]


def _read(path: Path) -> list[LabelledTrace]:
    records = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
    segments = {record["segment"]: record["text"] for record in records if "segment" in record}
    return [
        LabelledTrace(
            language=path.stem,
            class_=record["class"],
            kind=record["kind"],
            expected=record["gate"],
            written="first" if path.parent == FOLDER else path.parent.name,
            segment=segments[record["about"]],
            text=_text(record["trace"]),
        )
        for record in records
        if "about" in record
    ]


def _text(written: str | list[str | list[str | int]]) -> str:
    if isinstance(written, str):
        return written
    return "".join(part if isinstance(part, str) else part[0] * part[1] for part in written)  # type: ignore[operator,misc]
