"""Precision and recall of each gate, and how often good traces are rejected, on labelled traces in four languages.

    python -m benchmarks.gates
    python -m benchmarks.gates --list
    python -m benchmarks.gates --set third

473 traces written by hand (`benchmarks/gate_traces`): ordinary good ones in prose, code, tables, formulae and matrices,
baits (good ones that only look like a refusal, a leak, a loop), and failures of every gate that reads the text. Half of
them, by hash, is held out: gates were tuned on the other half alone. Precision is the share of failures among what a
gate objects to. `--list` shows every trace of the half for tuning that came out wrong, `--set` takes the traces of one
time of writing. The last line is one JSON object with the figures.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence

from rich.console import Console
from rich.table import Table

from augment.selection.gates.off_topic import OffTopic, TellingWords
from benchmarks.labelled_traces import EVERY_GATE, LabelledTrace, labelled_traces
from benchmarks.machine import conclude

console = Console()

Judged = list[tuple[LabelledTrace, list[str]]]

HALVES: dict[str, Callable[[LabelledTrace], bool]] = {
    "tuned": lambda trace: not trace.held_out,
    "held_out": lambda trace: trace.held_out,
    "all": lambda trace: True,
}


def share(hits: Iterable[bool]) -> tuple[int, int]:
    """How many are true, and of how many."""
    outcomes = list(hits)
    return sum(outcomes), len(outcomes)


def recall(judged: Judged, gate: str) -> tuple[int, int]:
    return share(gate in objections for trace, objections in judged if trace.expected == gate)


def precision(judged: Judged, gate: str) -> tuple[int, int]:
    return share(trace.class_ == "failure" for trace, objections in judged if gate in objections)


def rejected(judged: Judged, class_: str, **of: str) -> tuple[int, int]:
    """Traces of a class that some gate objects to, of one kind or language."""
    return share(
        bool(objections)
        for trace, objections in judged
        if trace.class_ == class_ and all(getattr(trace, name) == value for name, value in of.items())
    )


def shown(count: tuple[int, int]) -> str:
    hits, number = count
    return f"{hits}/{number} {hits / number:.0%}" if number else "-"


def distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def by_gate(halves: dict[str, Judged], gates: Sequence[str]) -> Table:
    table = Table("gate", *(f"{what}, {half}" for what in ("precision", "recall") for half in halves))
    for gate in gates:
        measured = [measure(judged, gate) for measure in (precision, recall) for judged in halves.values()]
        table.add_row(gate, *map(shown, measured))
    return table


def by_kind(halves: dict[str, Judged]) -> Table:
    table = Table("falsely rejected", "of", *halves)
    every = halves["all"]
    for class_ in ("good", "bait"):
        for of in ("language", "kind"):
            for value in distinct(getattr(trace, of) for trace, _ in every if trace.class_ == class_):
                counts = [rejected(judged, class_, **{of: value}) for judged in halves.values()]
                table.add_row(class_, value, *map(shown, counts))
        table.add_row(class_, "all", *(shown(rejected(judged, class_)) for judged in halves.values()))
    return table


def unrelated(traces: Sequence[LabelledTrace]) -> Iterator[tuple[LabelledTrace, str]]:
    """Good traces with each segment of their language that they are not about: off topic, whatever they say."""
    segments: dict[str, set[str]] = {}
    for trace in traces:
        segments.setdefault(trace.language, set()).add(trace.segment)
    for trace in traces:
        if trace.class_ != "failure":
            yield from ((trace, segment) for segment in sorted(segments[trace.language] - {trace.segment}))


def off_topic_by_chance(traces: Sequence[LabelledTrace]) -> dict[str, tuple[float, int, int]]:
    """Of each language, of unrelated pairs: shared telling words per pair of words; found off topic; judged."""
    gate, found = OffTopic(), {}
    for language in distinct(trace.language for trace in traces):
        shared = pairs = hits = number = 0
        for trace, segment in unrelated([trace for trace in traces if trace.language == language]):
            said, source = TellingWords(trace.text), TellingWords(segment)
            if len(said.words) * len(source.words) < gate.min_words**2:
                continue
            shared += len(said.words & source.words)
            pairs += len(said.words) * len(source.words)
            hits += gate.objects(trace.subject(segment))
            number += 1
        found[language] = (shared / max(1, pairs), hits, number)
    return found


def figures(halves: dict[str, Judged], gates: Sequence[str]) -> dict[str, float | int | None]:
    made: dict[str, float | int | None] = {"traces": len(halves["all"])}
    for half, judged in halves.items():
        counts = {f"false_rejection_{class_}": rejected(judged, class_) for class_ in ("good", "bait")}
        counts["missed"] = share(trace.expected not in objections for trace, objections in judged if trace.expected)
        for gate in gates:
            counts |= {f"precision_{gate}": precision(judged, gate), f"recall_{gate}": recall(judged, gate)}
        made |= {f"{name}_{half}": hits / number if number else None for name, (hits, number) in counts.items()}
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="show what came out wrong in the half for tuning")
    parser.add_argument("--set", choices=("first", "second", "third", "fourth"), help="only the traces written so")
    arguments = parser.parse_args()

    traces = [trace for trace in labelled_traces() if arguments.set in (None, trace.written)]
    judged = [(trace, trace.objections(EVERY_GATE)) for trace in traces]
    halves = {name: [pair for pair in judged if belongs(pair[0])] for name, belongs in HALVES.items()}
    gates = distinct(trace.expected for trace, _ in judged if trace.expected)
    if arguments.list:
        for trace, objections in halves["tuned"]:
            if bool(objections) != (trace.expected is not None) or (
                trace.expected and trace.expected not in objections
            ):
                console.print(trace.language, trace.class_, trace.kind, objections, markup=False, style="bold")
                console.print(trace.text[:400], markup=False)
    chance = off_topic_by_chance(traces)
    table = Table("unrelated trace and segment", "shared by chance", "found off topic")
    for language, (rate, hits, number) in chance.items():
        table.add_row(language, f"{rate:.5f}", shown((hits, number)))
    console.print(by_gate(halves, gates), by_kind(halves), table)
    made = figures(halves, gates)
    for language, (rate, hits, number) in chance.items():
        made |= {f"off_topic_chance_{language}": rate, f"off_topic_unrelated_{language}": hits / max(1, number)}
    conclude(console, "gates", made, ("py3langid",))


if __name__ == "__main__":
    main()
