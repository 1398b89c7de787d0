"""Quarantine in the terminal: which files and records became no document, and why. `inspect OUTPUT --quarantined`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

from rich.text import Text

from sharding import storage
from sharding.errors import RequestError
from sharding.records.types import Quarantined
from sharding.storage import manifest
from sharding.storage.manifest import Manifest


def quarantine(output: storage.Location, limit: int) -> Iterator[Text]:
    """What went to quarantine when the source was read and scored, by reason.

    Args:
        output: the run's output folder.
        limit: records shown of each reason.

    Raises:
        RequestError: nothing was scored.
        MillError: a part can't be read.
    """
    output = os.fspath(output)
    scored = manifest.read(output, "score")
    if scored is None:
        raise RequestError(f"--quarantined: nothing was scored in {output} yet")
    for warning in barren_files(scored):
        yield Text(warning)
    counts = scored.counts
    yield Text(f"{counts['quarantined']:,} of {counts['documents_in']:,} records are in quarantine")
    shown: dict[str, list[Quarantined]] = {
        name.removeprefix("quarantined."): [] for name in sorted(counts) if name.startswith("quarantined.")
    }
    for record in _records(output, scored):
        if len(shown[record.reason]) < limit:
            shown[record.reason].append(record)
        if all(len(some) >= min(limit, counts[f"quarantined.{reason}"]) for reason, some in shown.items()):
            break
    for reason, records in shown.items():
        yield Text(f"{reason}: {counts[f'quarantined.{reason}']:,}", "bold")
        for record in records:
            yield Text(f"  {record.origin}: {record.detail}")
            if record.excerpt:
                yield Text(f"    {record.excerpt}", "dim")


def barren_files(scored: Manifest) -> Iterator[str]:
    """A sentence for each file of which nothing became a document, as far as they are named, and one for the others."""
    for tally in scored.facts.get("sources", []):
        for file in tally["shown"]:
            yield f"none of {file['file']} became a document: {file['why']}"
        if others := tally["barren"] - len(tally["shown"]):
            yield f"nor did anything of {others:,} files more"


def _records(output: str, scored: Manifest) -> Iterator[Quarantined]:
    urls = manifest.file_urls(output, scored, "quarantine")
    return itertools.chain.from_iterable(storage.read_records(url, Quarantined) for url in urls)
