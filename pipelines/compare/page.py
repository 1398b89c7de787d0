"""The page of a comparison: figures, and the same documents as each run has them, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipelines.card.facts import REHEARSAL_NOTICE
from pipelines.compare.runs import Run
from pipelines.documents.reader import Reader
from pipelines.documents.sample import choose, read_documents
from pipelines.report import html, page, room
from pipelines.report.facts import Figure
from pipelines.report.room import Reading
from pipelines.secrets import without_secrets
from sharding.errors import MillError

MAX_DOCUMENTS = 8
"""Shown of those that all runs have."""

_LOOKED_AT = 64


@dataclass(frozen=True, kw_only=True)
class Beside:
    """One document, as some runs have it.

    Attributes:
        copies: a reading for each run, in their order.
    """

    copies: Sequence[Reading]

    @property
    def doc_id(self) -> str:
        return self.copies[0].doc_id

    @property
    def facts(self) -> Sequence[str]:
        return self.copies[0].facts

    @property
    def source(self) -> str:
        return self.copies[0].source

    @property
    def tiers(self) -> list[str]:
        return sorted({tier for copy in self.copies for tier in copy.tiers})

    @property
    def outcomes(self) -> list[str]:
        return sorted({outcome for copy in self.copies for outcome in copy.outcomes})


@dataclass(frozen=True, kw_only=True)
class Column:
    """What the page says of a run: its name, where it is, and the colours of its tiers."""

    name: str
    output: str
    threshold_nats: float
    style_of: Callable[[str], str]


def render(runs: Sequence[Run], figures: Sequence[Figure]) -> str:
    """The comparison as HTML."""
    columns = [
        Column(
            name=run.name,
            output=without_secrets(run.output),
            threshold_nats=page.threshold_of(run.facts.stages),
            style_of=run.facts.style_of,
        )
        for run in runs
    ]
    documents, closed = shared_documents(runs)
    made_up = [run.name for run in runs if page.rehearsal_of(run.facts.stages)]
    return html.page(
        "compare.html.j2",
        package="pipelines.compare",
        scripts=("theme.js", "room.js"),
        title=" and ".join(run.name for run in runs) if len(runs) == 2 else ", ".join(run.name for run in runs),
        kind="comparison",
        columns=columns,
        figures=figures,
        rehearsal=f"{', '.join(made_up)}: {REHEARSAL_NOTICE}" if made_up else "",
        warnings=[f"{run.name}: {told}" for run in runs for told in page.warnings_of(run.output, run.facts.stages)],
        documents=documents,
        choices=page.choices_of(documents),
        closed=closed,
        **page.reading_values(runs[0].facts.stages),
    )


def shared_documents(runs: Sequence[Run]) -> tuple[list[Beside], str]:
    """Documents that all runs have, those with thoughts first; and why there are none."""
    ids = _chosen(runs)
    if not ids:
        return [], "No document was seen in all of these runs, so none can be shown side by side."
    readings: list[dict[str, Reading]] = []
    for run in runs:
        try:
            reader = Reader(run.output, run.stages)
        except MillError as error:
            # A machine that has the outputs need not have their tokenizers; the tables do without.
            return [], without_secrets(f"The documents can't be shown here: {error}.")
        found = read_documents(run.output, run.stages, ids)
        readings.append({name: room.reading(reader.view(one), reader.threshold_nats) for name, one in found.items()})
    beside: list[Beside] = []
    size_bytes = 0
    for doc_id in ids:
        copies = [of_run[doc_id] for of_run in readings if doc_id in of_run]
        size_bytes += sum(copy.size_bytes for copy in copies)
        if beside and size_bytes > room.MAX_BYTES:
            break
        if len(copies) == len(runs):
            beside.append(Beside(copies=copies))
    return beside, "" if beside else "There is no document to read."


def _chosen(runs: Sequence[Run]) -> list[str]:
    """Ids that every run's sample has; what the first run's report would choose first, then others by hash."""
    samples = [run.facts.sample for run in runs]
    everywhere = set.intersection(*(set(sample.doc_ids) for sample in samples))
    thought_about = {candidate.doc_id for sample in samples for candidate in sample.candidates}
    wanted = [name for sample in samples for name in choose(sample, _LOOKED_AT)]
    ordered = dict.fromkeys(name for name in (*wanted, *samples[0].doc_ids) if name in everywhere)
    return sorted(ordered, key=lambda name: name not in thought_about)[:MAX_DOCUMENTS]
