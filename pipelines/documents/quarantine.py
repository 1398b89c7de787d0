"""Quarantine in the terminal: what could not go on, where, and why. `inspect OUTPUT --quarantined`.

Of two stages: files and records that became no document, and segments or generations that came to nothing. A stage that
gave up because of them has left them as well, without a manifest.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from rich.text import Text

from pipelines.terminal import counted
from sharding import storage
from sharding.errors import RequestError
from sharding.records.families import QUARANTINE
from sharding.records.types import Quarantined
from sharding.storage import manifest
from sharding.storage.manifest import Manifest

STAGES = {"score": "records of the source", "augment": "segments and generations"}
"""Stages that put something into quarantine, and what."""

MAX_RECORDS = 100_000
"""Read to count what no manifest counts."""

_PART = re.compile(rf"{QUARANTINE.name}-\d{{5,}}-of-\d{{5,}}\.arrow")


def quarantine(output: storage.Location, limit: int) -> Iterator[Text]:
    """What went to quarantine, by stage and reason: the place, the reason in words, and a line of each.

    Args:
        output: the run's output folder.
        limit: records shown of each reason.

    Raises:
        RequestError: nothing was scored, and no stage has left anything.
        MillError: a part can't be read.
    """
    output = os.fspath(output)
    stages = {stage: manifest.read(output, stage) for stage in STAGES}
    urls = {stage: _urls(output, stage, done) for stage, done in stages.items()}
    if stages["score"] is None and not any(urls.values()):
        raise RequestError(f"--quarantined: nothing was scored in {output} yet")
    for stage, done in stages.items():
        if done is not None and stage == "score":
            yield from _of_source(done, urls[stage], limit)
        elif urls[stage]:
            yield from _of_parts(stage, done, urls[stage], limit)


def barren_files(scored: Manifest) -> Iterator[str]:
    """A sentence for each file of which nothing became a document, as far as they are named, and one for the others."""
    for tally in scored.facts.get("sources", []):
        for file in tally["shown"]:
            yield f"none of {file['file']} became a document: {file['why']}"
        if others := tally["barren"] - len(tally["shown"]):
            yield f"nor did anything of {counted(others, 'file')} more"


def _urls(output: str, stage: str, done: Manifest | None) -> list[str]:
    """The parts of a stage's quarantine: those that its manifest names, or those it has left where it has given up."""
    if done is not None:
        return manifest.file_urls(output, done, QUARANTINE.name)
    folder = manifest.stage_url(output, stage)
    return [storage.join(folder, name) for name in sorted(storage.list_names(folder)) if _PART.fullmatch(name)]


def _of_source(scored: Manifest, urls: Sequence[str], limit: int) -> Iterator[Text]:
    """Of a finished score stage, which has counted them."""
    for warning in barren_files(scored):
        yield Text(warning)
    counts = scored.counts
    verb = "is" if counts["quarantined"] == 1 else "are"
    yield Text(f"{counts['quarantined']:,} of {counted(counts['documents_in'], 'record')} {verb} in quarantine")
    shown: dict[str, list[Quarantined]] = {
        name.removeprefix("quarantined."): [] for name in sorted(counts) if name.startswith("quarantined.")
    }
    for record in _records(urls):
        if len(shown[record.reason]) < limit:
            shown[record.reason].append(record)
        if all(len(some) >= min(limit, counts[f"quarantined.{reason}"]) for reason, some in shown.items()):
            break
    for reason, records in shown.items():
        yield from _reason(reason, f"{counts[f'quarantined.{reason}']:,}", records)


def _of_parts(stage: str, done: Manifest | None, urls: Sequence[str], limit: int) -> Iterator[Text]:
    """Of a stage that has not counted them by reason, or has given up."""
    shown: dict[str, list[Quarantined]] = {}
    numbers = Counter[str]()
    for record in itertools.islice(_records(urls), MAX_RECORDS):
        numbers[record.reason] += 1
        if len(some := shown.setdefault(record.reason, [])) < limit:
            some.append(record)
    if not numbers:
        return
    more = "at least " if numbers.total() == MAX_RECORDS else ""
    ended = "" if done is not None else ", which has not finished"
    yield Text(f"{stage}{ended}: {more}{numbers.total():,} {STAGES[stage]} in quarantine")
    for reason, records in sorted(shown.items()):
        yield from _reason(reason, f"{more}{numbers[reason]:,}", records)


def _reason(reason: str, number: str, records: Sequence[Quarantined]) -> Iterator[Text]:
    yield Text(f"{reason}: {number}", "bold")
    for record in records:
        yield Text(f"  {record.origin}: {record.detail}")
        if record.excerpt:
            yield Text(f"    {_line(record.excerpt)}", "dim")


def _line(text: str) -> str:
    """The first line of a text that has anything on it."""
    return next((line for line in text.splitlines() if line.strip()), "")


def _records(urls: Sequence[str]) -> Iterator[Quarantined]:
    return itertools.chain.from_iterable(storage.read_records(url, Quarantined) for url in urls)
