"""Inspect: documents of a run in the terminal, as the report's reading room has them. `thoughtmill inspect OUTPUT`.

Finds what is wanted, in a sample where no document is named; `terminal` says how it looks.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import RenderableType

from pipelines.documents.blocks import DocumentView
from pipelines.documents.reader import Reader
from pipelines.documents.sample import Sample, by_hash, look, read_documents
from pipelines.documents.terminal import document
from pipelines.terminal import visible
from sharding.errors import RequestError
from sharding.storage import manifest
from sharding.storage.manifest import Manifest

DEFAULT_DOCUMENTS = 3

_LOOKED_AT = 64
"""Documents that are read to find a tier, where difficulty doesn't decide."""

_NEAREST = 5

Stages = Mapping[str, Manifest | None]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to look at; all that is given must hold.

    Attributes:
        doc_id: this document. segment_id: this segment, as "document#index".
        tier: segments of this tier. rejected: segments with a candidate rejected for this reason.
        limit: how many documents; one document with its segments otherwise.
    """

    doc_id: str | None = None
    segment_id: str | None = None
    tier: str | None = None
    rejected: str | None = None
    limit: int = DEFAULT_DOCUMENTS


def inspect(output: str, wanted: Wanted, *, plain: bool = False) -> Iterator[RenderableType]:
    """What is wanted, one document after another, as something rich prints.

    Args:
        output: the run's output folder.
        wanted: which documents and segments.
        plain: without colours and boxes.

    Raises:
        RequestError: what is wanted isn't there; says what is.
        MillError: nothing was scored, or a part can't be read.
    """
    stages = {stage: manifest.read(output, stage) for stage in manifest.STAGES}
    reader = Reader(output, stages)
    _check(wanted, reader, stages)
    sample: Sample | None = None
    doc_id = wanted.doc_id if wanted.segment_id is None else wanted.segment_id.rpartition("#")[0]
    if doc_id is not None:
        doc_ids: Sequence[str] = [doc_id]
    else:
        sample = look(output, stages)
        doc_ids = _matching(wanted, sample, reader, output)[: wanted.limit]
        if not doc_ids:
            raise RequestError(_nothing(wanted, sample))
    documents = read_documents(output, stages, doc_ids)
    if not documents:
        raise RequestError(_no_document(output, stages, wanted, doc_ids[0]))
    for found in doc_ids:
        view = reader.view(documents[found])
        shown = _segments(view, wanted)
        if not shown:
            raise RequestError(_no_segment(view, wanted))
        yield document(view, shown, reader.threshold_nats, plain)


# --- what is wanted, and what there is --------------------------------------------------------------------------------


def _check(wanted: Wanted, reader: Reader, stages: Stages) -> None:
    """Refuse what no document can have, with the list of what they can."""
    if wanted.segment_id is not None:
        doc_id, hash_, index = wanted.segment_id.rpartition("#")
        if not hash_ or not index.isdigit():
            raise RequestError(f"--segment: {wanted.segment_id!r} is no segment id; it is DOCUMENT#INDEX, index from 0")
        if wanted.doc_id is not None and wanted.doc_id != doc_id:
            raise RequestError(f"--segment: {wanted.segment_id!r} is not of the document that --doc names")
    if wanted.tier is not None:
        if reader.allocation is None:
            raise RequestError("--tier: there are no tiers before the augment stage has planned")
        tiers = [plan.name for plan in reader.allocation.tiers]
        if wanted.tier not in tiers:
            raise RequestError(f"--tier: {wanted.tier!r} is not one of {', '.join(tiers)}")
    if wanted.rejected is not None:
        selected = stages["select"]
        if selected is None:
            raise RequestError("--rejected: nothing was rejected before the select stage has run")
        reasons = _reasons(selected)
        if wanted.rejected not in reasons:
            there = ", ".join(f"{reason} ({count:,})" for reason, count in reasons.items())
            raise RequestError(f"--rejected: {wanted.rejected!r} is not one of {there or 'no reasons: all were kept'}")


def _reasons(selected: Manifest) -> dict[str, int]:
    """Every reason → how many candidates it counts against; by the first reason, further objections after them."""
    counts = {n.removeprefix("rejected."): c for n, c in selected.counts.items() if n.startswith("rejected.")}
    for row in selected.facts.get("account", []):
        for reason, count in row["objections"].items():
            counts.setdefault(reason, count)
    return counts


def _matching(wanted: Wanted, sample: Sample, reader: Reader, output: str) -> list[str]:
    """Documents of the sample that have what is wanted, in the order of their hash; those with candidates first."""
    if wanted.rejected is not None:
        fitting = {
            c.doc_id for c in sample.candidates if wanted.rejected in c.reasons and wanted.tier in (None, c.tier)
        }
    elif wanted.tier is not None:
        fitting = {c.doc_id for c in sample.candidates if c.tier == wanted.tier}
        if not fitting and not reader.difficulty_decides:
            seen = read_documents(output, reader.stages, sample.doc_ids[:_LOOKED_AT])
            fitting = {name for name, found in seen.items() if wanted.tier in reader.tier_names(found.segments)}
        fitting = fitting or {
            segment_id.rpartition("#")[0]
            for segment_id, nats in sample.difficulty_nats.items()
            if reader.tier_name(segment_id, nats) == wanted.tier
        }
    else:
        fitting = {c.doc_id for c in sample.candidates} or set(sample.doc_ids)
    return sorted(fitting, key=by_hash)


def _segments(view: DocumentView, wanted: Wanted) -> set[int]:
    """Which segments of the document to show."""
    shown = set()
    for segment in view.segments:
        reasons = {reason for candidate in segment.candidates for reason in candidate.reasons}
        if (
            (wanted.segment_id is None or wanted.segment_id == f"{view.doc_id}#{segment.index}")
            and wanted.tier in (None, segment.tier)
            and (wanted.rejected is None or wanted.rejected in reasons)
        ):
            shown.add(segment.index)
    return shown


def _nothing(wanted: Wanted, sample: Sample) -> str:
    asked = [f"--tier {wanted.tier}"] * (wanted.tier is not None)
    asked += [f"--rejected {wanted.rejected}"] * (wanted.rejected is not None)
    where = "" if sample.is_whole else f" of the {sample.parts_read} parts looked at, of {sample.parts_there}"
    return f"{' '.join(asked) or 'OUTPUT'}: no document{where} has such a segment"


def _no_document(output: str, stages: Stages, wanted: Wanted, doc_id: str) -> str:
    option = "--doc" if wanted.segment_id is None else "--segment"
    there = look(output, stages).doc_ids
    near = difflib.get_close_matches(doc_id, there, _NEAREST, 0.5) or there[:_NEAREST]
    return f"{option}: there is no document {doc_id!r}; some that are there: {', '.join(map(visible, near))}"


def _no_segment(view: DocumentView, wanted: Wanted) -> str:
    has = ", ".join(sorted({segment.tier for segment in view.segments if segment.tier})) or "none yet"
    reasons = sorted({r for segment in view.segments for c in segment.candidates for r in c.reasons})
    return (
        f"document {view.doc_id!r} has no such segment; it has {len(view.segments)} (from 0), "
        f"tiers: {has}; reasons for rejection: {', '.join(reasons) or 'none'}"
    )
