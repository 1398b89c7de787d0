"""Adding counts up, in bundles first. A Beam transform."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam

from sharding.beam.shuffle import at_bundle_end

COUNTS = "counts"
"""The tag of the output that steps give their counts on."""


class AddUpCounts(beam.PTransform):
    """A tuple of collections of name → integer to a singleton of their sums; integers, so that no order shows.

    Each is added up within its bundles first: a count for every document would be a collection as long as the corpus.
    """

    def expand(self, counts: tuple[beam.PCollection, ...]) -> beam.PCollection:
        summed = tuple(each | f"Sum {n}" >> beam.ParDo(_SumBundleFn()) for n, each in enumerate(counts))
        return summed | beam.Flatten() | "Total" >> beam.CombineGlobally(_total)


class _SumBundleFn(beam.DoFn):
    def start_bundle(self) -> None:
        self._sums = Counter[str]()

    def process(self, counts: Mapping[str, int]) -> None:
        for name, count in counts.items():
            self._sums[name] += count

    def finish_bundle(self) -> Iterator[Any]:
        yield at_bundle_end(dict(self._sums))


def _total(sums: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for counts in sums:
        for name, count in counts.items():
            total[name] = total.get(name, 0) + count
    return dict(sorted(total.items()))
