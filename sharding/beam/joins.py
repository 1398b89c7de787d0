"""Joins: of records by key, through a shuffle, and of parts that fit together, without one. Beam transforms."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import apache_beam as beam
from apache_beam.typehints import KV

from sharding import records
from sharding.beam.part_join import JoinedDocument, Parts, groups_of, joined_documents
from sharding.beam.shuffle import GroupBytes
from sharding.records.base import Record


class GroupRecords(beam.PTransform):
    """Joins collections of (key, record) by key into (key, {name: [records]}).

    The records travel as tagged bytes: Beam's own co-grouping would pickle them.

    Args:
        num_partitions: see `GroupBytes`.
        kinds: name of each input collection → its record type.
    """

    def __init__(self, num_partitions: int, **kinds: type[Record]) -> None:
        super().__init__()
        self._num_partitions, self._kinds = num_partitions, kinds

    def expand(self, pcolls: dict[str, beam.PCollection]) -> beam.PCollection:
        kinds = list(self._kinds.items())
        tagged = tuple(
            pcolls[name] | f"Tag {name}" >> beam.MapTuple(_tagger(tag)).with_output_types(KV[str, bytes])
            for tag, (name, _) in enumerate(kinds)
        )

        def sort_out(key: str, values: Iterable[bytes]) -> tuple[str, dict[str, list[Record]]]:
            groups: dict[str, list[Record]] = {name: [] for name, _ in kinds}
            for data in values:
                name, kind = kinds[data[0]]
                groups[name].append(records.decode(kind, data[1:]))
            return key, groups

        grouped = tagged | "Group" >> GroupBytes(self._num_partitions)
        return grouped | "Sort out" >> beam.MapTuple(sort_out)


class JoinParts(beam.PTransform):
    """Scored documents with what other stages say of them, merged part by part: nothing is shuffled.

        pipeline | JoinParts(
            Parts.of(output, scored, SEGMENTS, ["input_ids"]), Parts.of(output, augmented, REQUESTS)
        )

    gives a `JoinedDocument` for each scored document, also for those of which nothing is said: its tokens, and its
    records under "requests". Needs families that were dealt out by document id to the same number of parts, each part
    sorted by document: see `sharding.beam.part_join`.

    Args:
        scored: of the family "segments".
        beside: of any other families.

    Raises:
        MillError: (at once) two stages dealt out to different numbers of parts; (on reading) a part is not what it has
            to be. Names the stage to make anew.
    """

    def __init__(self, scored: Parts, *beside: Parts) -> None:
        super().__init__()
        self._groups = groups_of(scored, *beside)

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection:
        return (
            pipeline
            | "Parts" >> beam.Create(self._groups, reshuffle=False)
            | "To workers" >> beam.Reshuffle()
            | "Merge" >> beam.FlatMap(joined_documents).with_output_types(JoinedDocument)
        )


def _tagger(tag: int) -> Callable[[str, Record], tuple[str, bytes]]:
    prefix = bytes([tag])
    return lambda key, record: (key, prefix + records.encode(record))
