"""Shuffles of bytes. On Beam's local runner they go through files, everywhere else they are Beam's own.

The local runner keeps what is shuffled in memory, and hands a worker its whole share in one piece: a corpus larger than
memory could not be milled on one machine, whose disk holds it easily.

    values ──► a file for each partition and bundle ──► names of files, grouped ──► values, read one by one
"""

from __future__ import annotations

import argparse
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.window import GlobalWindow
from apache_beam.typehints import KV
from apache_beam.utils.timestamp import MIN_TIMESTAMP
from apache_beam.utils.windowed_value import WindowedValue

import sharding.beam.coders  # noqa: F401  registers them
from sharding import hashing, records
from sharding.beam.shuffled_files import FiledValues, PartitionWriter
from sharding.records.base import Record

_KEY_LENGTH = struct.Struct("<I")


class LocalShuffleOptions(PipelineOptions):
    """The Beam option that chooses where the local runner's shuffles go."""

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--local_shuffle_folder",
            default=None,
            help="Folder for what goes from one step to the next on Beam's local runner; beside a local output, or "
            "among the temporary files, when absent. Empty: memory.",
        )


def shuffle_folder(options: PipelineOptions) -> str | None:
    """Where shuffles go through files; None where they are Beam's own."""
    return options.view_as(LocalShuffleOptions).local_shuffle_folder or None


Inputs = Any
"""One collection, or a tuple of several to take together: flattened before, the local runner would keep them all."""


class GroupPartitions(beam.PTransform):
    """(partition, bytes) → (partition, its values), in no particular order. Takes `Inputs`."""

    def expand(self, inputs: Inputs) -> beam.PCollection:
        collections = _several(inputs)
        folder = shuffle_folder(collections[0].pipeline.options)
        if folder is None:
            return collections | beam.Flatten() | "Group" >> beam.GroupByKey()
        return _files(collections, folder) | "Group files" >> beam.GroupByKey() | "Open" >> beam.MapTuple(_opened)


MIN_PARTITIONS = 64
"""The steps behind a shuffle have as many pieces of work, at most, as there are partitions."""


class GroupBytes(beam.PTransform):
    """(key, bytes) → (key, its values), in no particular order. Takes `Inputs`.

    Args:
        num_partitions: where it goes through files, how many at least: one is held in memory at a time.
    """

    def __init__(self, num_partitions: int) -> None:
        super().__init__()
        self._num_partitions = max(MIN_PARTITIONS, num_partitions)

    def expand(self, inputs: Inputs) -> beam.PCollection:
        collections = _several(inputs)
        if shuffle_folder(collections[0].pipeline.options) is None:
            return collections | beam.Flatten() | "Group" >> beam.GroupByKey()
        keyed = tuple(
            values
            | f"Partition {n}" >> beam.MapTuple(partial(_keyed, self._num_partitions)).with_output_types(KV[int, bytes])
            for n, values in enumerate(collections)
        )
        return keyed | "Partitions" >> GroupPartitions() | "By key" >> beam.FlatMapTuple(_by_key)


class PutAside(beam.PTransform):
    """(partition, bytes) as they are, kept until a later step that waits for something else; in files where they go.

    Takes `Inputs`.

    Args:
        hints: resource hints of that step: it reads the files in the same go where they are equal.
    """

    def __init__(self, hints: Mapping[str, Any] = MappingProxyType({})) -> None:
        super().__init__()
        self._hints = dict(hints)

    def expand(self, inputs: Inputs) -> beam.PCollection:
        collections = _several(inputs)
        folder = shuffle_folder(collections[0].pipeline.options)
        if folder is None:
            return _together(collections)
        read = beam.FlatMapTuple(_read).with_resource_hints(**self._hints)
        return _files(collections, folder) | "To workers" >> beam.Reshuffle() | "Read" >> read


class PutElementsAside(beam.PTransform):
    """Elements as they are, kept until a step that waits for what comes of all of them, as `PutAside` keeps bytes.

    Where several steps read a collection and don't run together, and where several collections become one, the local
    runner would hold them in memory. Takes `Inputs`.

    Args:
        kind: their type.
        encode, decode: to bytes and back.
        hints: see `PutAside`.
    """

    def __init__(
        self,
        kind: Any,
        encode: Callable[[Any], bytes],
        decode: Callable[[bytes], Any],
        hints: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self._kind, self._encode, self._decode, self._hints = kind, encode, decode, dict(hints)

    def expand(self, inputs: Inputs) -> beam.PCollection:
        collections = _several(inputs)
        if shuffle_folder(collections[0].pipeline.options) is None:
            return _together(collections)
        dealt_out = partial(_dealt_out, self._encode)
        return (
            tuple(
                values | f"As bytes {n}" >> beam.Map(dealt_out).with_output_types(KV[int, bytes])
                for n, values in enumerate(collections)
            )
            | PutAside(self._hints)
            | "As they were"
            >> beam.MapTuple(partial(_taken_up, self._decode))
            .with_output_types(self._kind)
            .with_resource_hints(**self._hints)
        )


class PutRecordsAside(PutElementsAside):
    """The same of records of one type."""

    def __init__(self, kind: type[Record]) -> None:
        super().__init__(kind, records.encode, partial(records.decode, kind))


def _dealt_out(encode: Callable[[Any], bytes], value: Any) -> tuple[int, bytes]:
    data = encode(value)
    return hashing.partition_of(hashing.text_hash(data).hex(), MIN_PARTITIONS), data


def _taken_up(decode: Callable[[bytes], Any], _: int, data: bytes) -> Any:
    return decode(data)


class _File(beam.PTransform):
    """(partition, bytes) → (partition, path)."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = folder

    def expand(self, values: beam.PCollection) -> beam.PCollection:
        return values | beam.ParDo(_FileFn(self._folder)).with_output_types(KV[int, str])


class _FileFn(beam.DoFn):
    def __init__(self, folder: str) -> None:
        self._folder = folder

    def start_bundle(self) -> None:
        self._writer = PartitionWriter(self._folder)

    def process(self, element: tuple[int, bytes]) -> None:
        self._writer.add(*element)

    def finish_bundle(self) -> Iterator[Any]:
        yield from map(at_bundle_end, self._writer.close().items())


def at_bundle_end(output: Any) -> Any:
    """An output, tagged or not, in the form in which Beam takes it from `finish_bundle`."""
    tagged = isinstance(output, beam.pvalue.TaggedOutput)
    value = WindowedValue(output.value if tagged else output, MIN_TIMESTAMP, [GlobalWindow()])
    return beam.pvalue.TaggedOutput(output.tag, value) if tagged else value


def _several(inputs: Inputs) -> tuple[beam.PCollection, ...]:
    return (inputs,) if isinstance(inputs, beam.PCollection) else inputs


def _together(collections: tuple[beam.PCollection, ...]) -> beam.PCollection:
    return collections[0] if len(collections) == 1 else collections | beam.Flatten()


def _files(collections: tuple[beam.PCollection, ...], folder: str) -> beam.PCollection:
    """(partition, path) of the files that (partition, bytes) are written to."""
    return tuple(values | f"Files {n}" >> _File(folder) for n, values in enumerate(collections)) | beam.Flatten()


def _opened(partition: int, paths: Iterable[str]) -> tuple[int, FiledValues]:
    return partition, FiledValues(tuple(sorted(paths)))


def _read(partition: int, path: str) -> Iterator[tuple[int, bytes]]:
    for value in FiledValues((path,)):
        yield partition, value


def _keyed(num_partitions: int, key: str, value: bytes) -> tuple[int, bytes]:
    data = key.encode("utf-8", "surrogatepass")
    return hashing.partition_of(key, num_partitions), _KEY_LENGTH.pack(len(data)) + data + value


def _by_key(_: int, values: Iterable[bytes]) -> Iterator[tuple[str, list[bytes]]]:
    groups: dict[bytes, list[bytes]] = {}
    for value in values:
        (length,) = _KEY_LENGTH.unpack_from(value)
        end = _KEY_LENGTH.size + length
        groups.setdefault(value[_KEY_LENGTH.size : end], []).append(value[end:])
    for data, group in groups.items():
        yield data.decode("utf-8", "surrogatepass"), group
