"""What a pipeline has made, from its workers to the process that submitted it: by a small file, on every runner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import apache_beam as beam
import msgspec

from sharding import storage
from sharding.beam.counts import AddUpCounts
from sharding.beam.parts import WriteOnce
from sharding.errors import MillError
from sharding.records.families import Family
from sharding.records.types import FileEntry


@dataclass(frozen=True)
class Built:
    """What the pipeline of a stage gives.

    Attributes:
        counts: collections of dictionaries of counts, to be added up.
        parts: family → collection of the records that are to be written as its parts.
        files: family → collection of the `FileEntry`s of files that are written already.
        facts: name → collection of one JSON value.
    """

    counts: Sequence[beam.PCollection]
    parts: Mapping[Family, beam.PCollection] = field(default_factory=dict)
    files: Mapping[Family, beam.PCollection] = field(default_factory=dict)
    facts: Mapping[str, beam.PCollection] = field(default_factory=dict)


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a pipeline has made: its files by family, its counts added up, and its facts."""

    files: dict[str, list[FileEntry]] = msgspec.field(default_factory=dict)
    counts: dict[str, int] = msgspec.field(default_factory=dict)
    facts: dict[str, Any] = msgspec.field(default_factory=dict)


class WriteOutcome(beam.PTransform):
    """Writes an `Outcome` once everything in it is complete: the last step of a stage's pipeline.

    Args:
        url: where to; of this run alone.
        files, counts, facts: see `Built`; files by the name of their family.
    """

    def __init__(
        self,
        url: str,
        files: Mapping[str, beam.PCollection],
        counts: Sequence[beam.PCollection],
        facts: Mapping[str, beam.PCollection],
    ) -> None:
        super().__init__()
        self._url, self._files, self._counts, self._facts = url, files, tuple(counts), facts

    def expand(self, root: beam.Pipeline) -> beam.PCollection:
        total = self._counts | "Counts" >> AddUpCounts()
        return root | "Write" >> WriteOnce(
            partial(_write, self._url),
            lists={f"files {name}": entries for name, entries in self._files.items()},
            singles={"counts": total} | {f"facts {name}": fact for name, fact in self._facts.items()},
        )


def _write(url: str, **values: Any) -> None:
    outcome: dict[str, Any] = {"files": {}, "facts": {}, "counts": values.pop("counts")}
    for name, value in values.items():
        kind, _, of = name.partition(" ")
        outcome[kind][of] = value
    storage.write_bytes(url, msgspec.json.encode(Outcome(**outcome)))


def take_outcome(url: str) -> Outcome:
    """The outcome of a pipeline that has ended; its file is removed.

    Raises:
        MillError: it is not there, or can't be read.
    """
    if not storage.exists(url):
        raise MillError(
            f"the pipeline ended, and {url} is not there: its workers and this process don't see the same store; name "
            "an output that all of them reach"
        )
    outcome = msgspec.json.decode(storage.read_bytes(url), type=Outcome)
    storage.remove(url, url.rpartition("/")[0])
    return outcome
