"""Beam transforms of the sharding package: coders, reading and writing parts, counting, joining.

They only wire: what happens to a record is in the pure modules next door.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import apache_beam as beam
import pyarrow as pa
from apache_beam import coders
from apache_beam.typehints import KV

from sharding import order, records, shard_io
from sharding.records import FileEntry, Quarantined, Record
from sharding.shuffle import GroupBytes, GroupPartitions, at_bundle_end

R = TypeVar("R", bound=Record)


class RecordCoder(coders.Coder):
    """Carries a record between workers as the bytes of `records.encode`."""

    def __init__(self, kind: type[Record]) -> None:
        self._kind = kind

    def encode(self, value: Record) -> bytes:
        return records.encode(value)

    def decode(self, encoded: bytes) -> Record:
        return records.decode(self._kind, encoded)

    def is_deterministic(self) -> bool:
        return True

    def to_type_hint(self) -> type[Record]:
        return self._kind

    @classmethod
    def from_type_hint(cls, typehint: type[Record], registry: Any) -> RecordCoder:
        return cls(typehint)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RecordCoder) and self._kind is other._kind

    def __hash__(self) -> int:
        return hash(self._kind)


for _kind in Record.__subclasses__():
    coders.registry.register_coder(_kind, RecordCoder)


class ReadParts(beam.PTransform):
    """The records of Arrow part files, in no particular order.

    Args:
        urls: the files, from a manifest.
        kind: the record type.
        columns: the columns wanted; all when absent.
    """

    def __init__(self, urls: Iterable[str], kind: type[Record], columns: Iterable[str] | None = None) -> None:
        super().__init__()
        self._urls, self._kind = sorted(urls), kind
        self._columns = None if columns is None else tuple(columns)

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection:
        return (
            pipeline
            | "Files" >> beam.Create(self._urls, reshuffle=False)
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.FlatMap(shard_io.read_records, self._kind, self._columns).with_output_types(self._kind)
        )


class WriteParts(beam.PTransform):
    """Writes records as Arrow parts whose bytes depend on the records alone, and gives their `FileEntry`s.

    A record's part is chosen by a hash of its partition key and the records of a part are sorted, so neither the
    bundling nor the number of workers shows; a retried bundle writes the same bytes over the same name. One part is
    held in memory at a time.

    Args:
        folder: URL of the stage's folder.
        family: file name prefix and the manifest's family, such as "segments".
        schema: the columns.
        num_parts: how many parts at most; a part without records is not written.
        partition_key: the string whose hash chooses the part.
        sort_key: order within a part; must tell any two records apart.
        rows_of: the rows that a record is written as, where they aren't itself.
    """

    def __init__(
        self,
        folder: str,
        family: str,
        schema: pa.Schema,
        *,
        kind: type[Record],
        num_parts: int,
        partition_key: Callable[[Any], str],
        sort_key: Callable[[Any], Any],
        rows_of: Callable[[Any], Iterable[Record]] | None = None,
    ) -> None:
        super().__init__()
        self._folder, self._family, self._schema, self._kind = folder, family, schema, kind
        self._num_parts, self._partition_key, self._sort_key = num_parts, partition_key, sort_key
        self._rows_of = rows_of

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection:
        partition_key, num_parts = self._partition_key, self._num_parts
        return (
            pcoll
            | "Partition"
            >> beam.Map(
                lambda r: (order.partition_of(partition_key(r), num_parts), records.encode(r))
            ).with_output_types(KV[int, bytes])
            | "Group" >> GroupPartitions()
            | "Write" >> beam.Map(self._write).with_output_types(FileEntry)
        )

    def _write(self, part: tuple[int, Iterable[bytes]]) -> FileEntry:
        index, values = part
        name = part_name(self._family, index, self._num_parts)
        members = sorted((records.decode(self._kind, value) for value in values), key=self._sort_key)
        rows = members if self._rows_of is None else (row for member in members for row in self._rows_of(member))
        return shard_io.write_part(shard_io.join(self._folder, name), rows, self._schema, name=name)


def write_quarantine(folder: str, num_parts: int) -> WriteParts:
    """Writes what a stage could not take on, as the family "quarantine"."""
    return WriteParts(
        folder,
        "quarantine",
        records.QUARANTINE_SCHEMA,
        kind=Quarantined,
        num_parts=num_parts,
        partition_key=lambda refused: refused.origin,
        sort_key=lambda refused: (refused.origin, refused.reason, refused.detail),
    )


def part_name(family: str, index: int, num_parts: int) -> str:
    """File name of a part, such as "segments-00003-of-00016.arrow"."""
    return f"{family}-{index:05d}-of-{num_parts:05d}.arrow"


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


def _tagger(tag: int) -> Callable[[str, Record], tuple[str, bytes]]:
    prefix = bytes([tag])
    return lambda key, record: (key, prefix + records.encode(record))


class WriteOnce(beam.PTransform):
    """Runs `write(**values)` exactly when everything it is given is complete: the last act of a stage.

    Args:
        write: called once, with each collection of `lists` as a list and each of `singles` as its only element.
    """

    def __init__(
        self,
        write: Callable[..., None],
        *,
        lists: Mapping[str, beam.PCollection],
        singles: Mapping[str, beam.PCollection],
    ) -> None:
        super().__init__()
        self._write = write
        self._lists, self._singles = dict(lists), dict(singles)

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection:
        write = self._write

        def finish(_: None, **values: Any) -> Iterator[None]:
            write(**{name: list(value) if name in list_names else value for name, value in values.items()})
            return iter(())

        list_names = set(self._lists)
        sides: dict[str, Any] = {name: beam.pvalue.AsIter(values) for name, values in self._lists.items()}
        sides |= {name: beam.pvalue.AsSingleton(value) for name, value in self._singles.items()}
        return pipeline | "Once" >> beam.Create([None]) | "Finish" >> beam.FlatMap(finish, **sides)
