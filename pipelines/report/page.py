"""The page: the template with style and script put into it, so that one file is all there is to send around.

Text of the corpus is escaped by the template and never comes near the script; its control characters are spelled out.
A content security policy allows that one script, by its hash, and nothing from anywhere else.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import PurePosixPath

from markupsafe import Markup, escape

from difficulty.surprisal import measure_of
from pipelines.card.facts import REHEARSAL_NOTICE
from pipelines.documents.blocks import FULL_COLOUR_NATS
from pipelines.report import room
from pipelines.report.facts import Facts, Figure
from pipelines.report.funnel import Step
from pipelines.report.room import Reading
from pipelines.secrets import without_secrets
from pipelines.terminal import visible
from pipelines.watch.files import read_drifts

MEASURES = {"surprisal": "surprisal", "excess": "excess over the reference", "beyond_entropy": "beyond entropy"}


def render(
    output: str,
    facts: Facts,
    steps: Sequence[Step],
    figures: Sequence[Figure],
    readings: Sequence[Reading],
    closed: str,
) -> str:
    """The report as HTML.

    Args:
        output: where the run is.
        closed: why there is nothing to read.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pipelines.report", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["with_code"] = with_code
    stages = facts.stages
    packed, augmented = stages["pack"], stages["augment"]
    name = packed.config["card"]["name"] if packed else PurePosixPath(output.rstrip("/")).name
    script = _file("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    html = environment.get_template("page.html.j2").render(
        title=name,
        output=without_secrets(output),
        stages=stages,
        rehearsal=REHEARSAL_NOTICE if any(stage.rehearsal for stage in stages.values() if stage) else "",
        warnings=[*augmented.facts["warnings"], *map(str, read_drifts(output))] if augmented else [],
        steps=steps,
        figures=figures,
        readings=readings,
        closed=closed,
        style_of=facts.style_of,
        full_colour=FULL_COLOUR_NATS,
        levels=range(room.LEVELS),
        measure=MEASURES[measure_of(stages["score"].config["difficulty"]) if stages["score"] else "surprisal"],
        threshold_nats=stages["score"].config["difficulty"]["threshold_nats"] if stages["score"] else 0,
        layout=packed.config["layout"] if packed else "",
        value=stages["select"].facts.get("value", "none") if stages["select"] else "",
        style=_file("page.css"),
        script=script,
        script_digest=digest,
    )
    return visible(html)


def with_code(text: str) -> Markup:
    """Escaped, with what stands between backticks as code."""
    pieces = text.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(p) if i % 2 else escape(p) for i, p in enumerate(pieces))


def _file(name: str) -> str:
    return resources.files("pipelines.report").joinpath("template", name).read_text(encoding="utf-8")
