"""Beam transforms that write parts, and the last act of a stage. `JoinParts` reads them.

They only wire: what happens to a record is in the pure modules next door.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam
from apache_beam.typehints import KV

from sharding import hashing, records, storage
from sharding.beam.part_names import part_name
from sharding.beam.shuffle import GroupPartitions
from sharding.records.families import Family
from sharding.records.types import FileEntry


class WriteParts(beam.PTransform):
    """Writes the records of a family as Arrow parts whose bytes depend on the records alone; gives their `FileEntry`s.

    A record's part is chosen by a hash of its partition key and the records of a part are sorted, so neither the
    bundling nor the number of workers shows; a retried bundle writes the same bytes over the same name. One part is
    held in memory at a time.

    Args:
        folder: URL of the stage's folder.
        family: from `sharding.records.families`.
        num_parts: how many parts at most; a part without records is not written.
        vocab_size: entries of the training vocabulary, for families with token ids.
        below: the folder within the stage's that the parts go to; their names begin with it.
    """

    def __init__(
        self, folder: str, family: Family, num_parts: int, *, vocab_size: int | None = None, below: str = ""
    ) -> None:
        super().__init__()
        self._folder, self._family, self._num_parts, self._below = folder, family, num_parts, below
        self._schema = family.schema(vocab_size=vocab_size)

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection:
        partition_key, num_parts = self._family.partition_key, self._num_parts
        return (
            pcoll
            | "Partition"
            >> beam.Map(
                lambda r: (hashing.partition_of(partition_key(r), num_parts), records.encode(r))
            ).with_output_types(KV[int, bytes])
            | "Group" >> GroupPartitions()
            | "Write" >> beam.Map(self._write).with_output_types(FileEntry)
        )

    def _write(self, part: tuple[int, Iterable[bytes]]) -> FileEntry:
        index, values = part
        family = self._family
        name = posixpath.join(self._below, part_name(family.name, index, self._num_parts))
        kind, rows_of = family.carried or family.kind, family.rows_of
        members = sorted((records.decode(kind, value) for value in values), key=family.sort_key)
        rows = members if rows_of is None else (row for member in members for row in rows_of(member))
        return storage.write_part(storage.join(self._folder, name), rows, self._schema, name=name)


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
