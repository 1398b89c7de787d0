"""The report's page: what `html` needs to know of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Protocol

from difficulty.surprisal import measure_of
from pipelines.card.facts import REHEARSAL_NOTICE
from pipelines.documents.blocks import FULL_COLOUR_NATS
from pipelines.report import html, room, worth
from pipelines.report.configuration import Section
from pipelines.report.facts import Facts, Figure, Stages
from pipelines.report.funnel import Step
from pipelines.report.room import Reading
from pipelines.secrets import without_secrets
from pipelines.watch.files import read_drifts

MEASURES = {"surprisal": "surprisal", "excess": "excess over the reference", "beyond_entropy": "beyond entropy"}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Something to filter documents by, with the values that there are."""

    key: str
    label: str
    values: Sequence[str]


def render(
    output: str,
    facts: Facts,
    steps: Sequence[Step],
    figures: Sequence[Figure],
    readings: Sequence[Reading],
    closed: str,
    sections: Sequence[Section],
) -> str:
    """The report as HTML.

    Args:
        output: where the run is.
        closed: why there is nothing to read.
        sections: the configuration.
    """
    stages = facts.stages
    packed = stages["pack"]
    return html.page(
        "page.html.j2",
        scripts=("theme.js", "room.js"),
        title=name_of(output, stages),
        kind="report",
        output=without_secrets(output),
        stages=stages,
        rehearsal=rehearsal_of(stages),
        warnings=warnings_of(output, stages),
        steps=steps,
        figures=figures,
        readings=readings,
        choices=choices_of(readings),
        closed=closed,
        style_of=facts.style_of,
        layout=packed.config["layout"] if packed else "",
        value=stages["select"].facts.get("value", "none") if stages["select"] else "",
        sections=sections,
        **reading_values(stages),
    )


def name_of(output: str, stages: Stages) -> str:
    """What the corpus is called, or the folder before it is packed."""
    packed = stages["pack"]
    return str(packed.config["card"]["name"]) if packed else PurePosixPath(output.rstrip("/")).name


def rehearsal_of(stages: Stages) -> str:
    """That a run is none to train on; "" of one that is."""
    return REHEARSAL_NOTICE if any(stage.rehearsal for stage in stages.values() if stage) else ""


def warnings_of(output: str, stages: Stages) -> list[str]:
    """What whoever looks at a run should know of it."""
    augmented, selected = stages["augment"], stages["select"]
    told = [*augmented.facts["warnings"], *map(str, read_drifts(output))] if augmented else []
    return [*told, *(worth.warnings_of(selected) if selected else ())]


def reading_values(stages: Stages) -> dict[str, Any]:
    """What the template needs to colour tokens."""
    scored = stages["score"]
    return {
        "full_colour": FULL_COLOUR_NATS,
        "levels": range(room.LEVELS),
        "measure": MEASURES[measure_of(scored.config["difficulty"]) if scored else "surprisal"],
        "threshold_nats": threshold_of(stages),
    }


def threshold_of(stages: Stages) -> float:
    """Above so many nats a token is hard."""
    scored = stages["score"]
    return float(scored.config["difficulty"]["threshold_nats"]) if scored else 0.0


class Readable(Protocol):
    """A document of a reading room, as one run has it or as several do."""

    @property
    def tiers(self) -> Sequence[str]: ...
    @property
    def outcomes(self) -> Sequence[str]: ...
    @property
    def source(self) -> str: ...


def choices_of(readings: Sequence[Readable]) -> list[Choice]:
    """What the documents of the reading room can be filtered by."""
    found = {
        ("tiers", "Tier"): [tier for reading in readings for tier in reading.tiers],
        ("outcomes", "Outcome"): [outcome for reading in readings for outcome in reading.outcomes],
        ("sources", "Source"): [reading.source for reading in readings if reading.source],
    }
    return [Choice(key=key, label=label, values=sorted(set(values))) for (key, label), values in found.items()]
