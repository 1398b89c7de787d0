"""The report: one page about a run, for a browser without a network. `thoughtmill run` ends with it.

manifests ────► facts ──► funnel, spread, traces, worth, shards, ablation: figures ─┐
a few parts ──► sample ─┘                                          ├─► page, html, template/ ──► report.html
a few documents ──► reader ──► room: the reading room ─────────────┤
manifests ────► configuration ─────────────────────────────────────┘

`thoughtmill report OUTPUT` makes it at any time, from whatever stages have finished, and says what isn't there yet. It
depends on the output alone.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pipelines import delivered
from pipelines.secrets import published, without_secrets
from sharding import storage
from sharding.errors import MillError
from sharding.storage.manifest import Manifest
from sharding.storage.output import Output

if TYPE_CHECKING:
    from pipelines.report.facts import Facts, Figure, Stages


def report_url(output: storage.Location) -> str:
    """Where the report of a run is, or will be."""
    return Output(os.fspath(output)).report


def is_there(output: storage.Location) -> bool:
    """Whether it has been written."""
    return storage.exists(report_url(output))


def write(output: storage.Location, to: storage.Location | None = None) -> str:
    """Write the report into the output, over an older one; its URL.

    Args:
        output: of the run.
        to: another file to write, such as where the output can't be written.

    Raises:
        MillError: nothing of a run is there, or a file can't be read or written.
    """
    url = report_url(output) if to is None else os.fspath(to)
    storage.write_bytes(url, render(output).encode())
    return url


def render(output: storage.Location) -> str:
    """The report of a run as HTML; a few MB at most, whatever the size of the corpus.

    Raises:
        MillError: nothing of a run is there, or a file can't be read.
    """
    from pipelines.report import page
    from pipelines.report.configuration import effective, sections
    from pipelines.report.funnel import steps

    output = os.fspath(output)
    stages = read_stages(output)
    if stages["score"] is None:
        raise MillError(f"{output} holds no scored run: run `thoughtmill score CONFIG` first, or name another output")
    facts = gather(output, stages)
    readings, closed = _reading_room(output, stages, facts.sample)
    told = sections(effective(output, stages))
    return page.render(output, facts, steps(facts.stages), figures_of(output, facts), readings, closed, told)


def read_stages(output: str) -> dict[str, Manifest | None]:
    """The manifests of an output, None of what hasn't finished; counts are of all its deliveries.

    Raises:
        MillError: one can't be understood.
    """
    return delivered.read_stages(output)


def gather(output: str, stages: Stages) -> Facts:
    """All that figures are made from, without secrets.

    Raises:
        MillError: a file can't be read.
    """
    from pipelines.documents.reader import read_allocation
    from pipelines.documents.sample import look
    from pipelines.report.facts import Facts

    scored = stages["score"]
    return Facts(
        stages={name: published(stage) if stage else None for name, stage in stages.items()},
        allocation=read_allocation(output, scored) if scored else None,
        prices=_prices(output),
        sample=look(output, stages),
    )


def figures_of(output: str, facts: Facts) -> list[Figure]:
    """The figures of a run, in order; of what isn't there yet they say so."""
    from pipelines.ablation import result
    from pipelines.report import ablation, shards, spread, traces, worth

    return [
        *(spread.difficulty(facts), spread.spending(facts)),
        *(traces.lengths(facts), traces.gains(facts), worth.gain_against_cost(facts), traces.rejections(facts)),
        *(shards.packing(facts), shards.cost(facts)),
        *ablation.figures(result.read(output)),
    ]


def _reading_room(output: str, stages: Stages, sample: Any) -> tuple[list[Any], str]:
    """The documents to read, and why there are none."""
    from pipelines.documents.reader import Reader
    from pipelines.documents.sample import choose, read_documents
    from pipelines.report import room

    try:
        reader = Reader(output, stages)
    except MillError as error:
        # A machine that has the output need not have the tokenizer; the figures do without.
        return [], without_secrets(f"The documents can't be shown here: {error}.")
    readings: list[Any] = []
    size_bytes = 0
    documents = read_documents(output, stages, choose(sample, room.MAX_DOCUMENTS))
    for document in documents.values():
        shown = room.reading(reader.view(document), reader.threshold_nats)
        size_bytes += shown.size_bytes
        if readings and size_bytes > room.MAX_BYTES:
            break
        readings.append(shown)
    readings.sort(key=lambda one: not any(passage.kind == "thought" for passage in one.passages))
    return readings, "" if readings else "There is no document to read."


def _prices(output: str) -> dict[str, dict[str, Any]]:
    """What the plan says of the price of each model."""
    from pipelines.watch.files import read_plan

    plan = read_plan(output)
    return plan["models"] if plan else {}
