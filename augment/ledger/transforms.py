"""Beam transforms of the ledger: its rows, and what of a run's requests it lacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import msgspec
from apache_beam.typehints import KV, List, Tuple

from augment.ledger.partial import furthest
from augment.ledger.parts import read_part
from augment.ledger.reading import STEP_COLUMNS, collapse_duplicates
from sharding import records
from sharding.beam.counts import COUNTS
from sharding.beam.joins import GroupRecords
from sharding.records.types import LedgerRow, Request

FOUND_COLUMNS = STEP_COLUMNS
"""What `FindMissing` looks at."""

MAX_TOLD = 1 << 14
"""So many keys a bundle remembers."""

MissingSamples = Tuple[Request, List[int]]
"""A request, with the calls that its recipes have made, and the indices of its samples that have to be generated."""


_missing_decoder = msgspec.msgpack.Decoder(tuple[list[int], bytes])


def encode_missing(element: tuple[Request, list[int]]) -> bytes:
    """`MissingSamples` as bytes."""
    return msgspec.msgpack.encode((element[1], records.encode(element[0])))


def decode_missing(data: bytes) -> tuple[Request, list[int]]:
    """The inverse of `encode_missing`."""
    samples, request = _missing_decoder.decode(data)
    return records.decode(Request, request), samples


class ReadLedger(beam.PTransform):
    """The rows of the ledger, by request key; a part that can't be read is left out, and its rows are made again.

    Args:
        urls: the parts, from `ledger_parts`.
        columns: the columns wanted; all when absent.
    """

    def __init__(self, urls: Sequence[str], columns: Sequence[str] | None = None) -> None:
        super().__init__()
        self._urls, self._columns = sorted(urls), columns

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection:
        return (
            pipeline
            | "Begin" >> beam.Impulse()
            | "Parts" >> beam.FlatMap(_parts, self._urls).with_output_types(str)  # `Create` has them thrice in a job
            | "To workers" >> beam.Reshuffle()
            | "Read" >> beam.FlatMap(_rows_of_part, self._columns).with_output_types(KV[str, LedgerRow])
        )


def _parts(_: bytes, urls: Sequence[str]) -> Sequence[str]:
    return urls


def _rows_of_part(url: str, columns: Sequence[str] | None) -> Iterator[tuple[str, LedgerRow]]:
    for row in read_part(url, columns) or ():
        yield row.request_key, row


class FindMissing(beam.PTransform):
    """Joins requests with the ledger: `requests`, the samples still to be generated, and `counts`.

    Requests with one key, from segments with one text, become one. Takes {"requests": Request, "rows": LedgerRow,
    "begun": LedgerRow}, the rows keyed by request key; of the finished ones `FOUND_COLUMNS` are enough, of the partial
    ones, `begun`, it takes all.

    Args:
        num_partitions: see `sharding.beam.shuffle.GroupBytes`.
    """

    def __init__(self, num_partitions: int) -> None:
        super().__init__()
        self._num_partitions = num_partitions

    def expand(self, pcolls: dict[str, beam.PCollection]) -> Any:
        requests = pcolls["requests"] | "By key" >> beam.ParDo(_ByKeyFn()).with_output_types(KV[str, Request])
        outputs = (
            {
                "requests": requests,
                "rows": pcolls["rows"]
                | "Without text" >> beam.Map(_with_first_letter).with_output_types(KV[str, LedgerRow]),
                "begun": pcolls["begun"],
            }
            | "Join" >> GroupRecords(self._num_partitions, requests=Request, rows=LedgerRow, begun=LedgerRow)
            | "Missing" >> beam.FlatMap(missing_samples).with_outputs(COUNTS, main="requests")
        )
        outputs["requests"].element_type = MissingSamples
        return outputs


def _with_first_letter(row: tuple[str, LedgerRow]) -> tuple[str, LedgerRow]:
    """A row of which it is only asked whether there is text; the text is most of it, and would be shuffled.

    A recipe's call keeps it: the recipe may have to go on from there.
    """
    if row[1].step:
        return row
    return row[0], msgspec.structs.replace(row[1], text=row[1].text.lstrip()[:1])


class _ByKeyFn(beam.DoFn):
    """Requests by their keys; of a bundle's requests with one key those alone that can decide what is missing.

    A passage that a corpus has a million times would else meet itself, with its prompt, as often in one place.
    """

    def start_bundle(self) -> None:
        self._told: dict[str, tuple[tuple[str, int], int]] = {}  # those met last: key → first place, most samples

    def process(self, request: Request) -> Iterator[tuple[str, Request]]:
        key, place = request.request_key, (request.doc_id, request.segment_index)
        first, samples = self._told.pop(key, (place, 0))
        if place < first or request.samples > samples:
            yield key, request
        self._told[key] = min(first, place), max(samples, request.samples)
        if len(self._told) > MAX_TOLD:
            del self._told[next(iter(self._told))]


def missing_samples(group: tuple[str, dict[str, list[Any]]]) -> Iterator[Any]:
    """The samples of one request key that the ledger lacks; nothing for rows that nobody asks for."""
    requests: list[Request] = group[1]["requests"]
    if not requests:
        return
    request = min(requests, key=lambda r: (r.doc_id, r.segment_index))
    samples = max(r.samples for r in requests)
    every = collapse_duplicates(group[1]["rows"])
    rows = [row for row in every if row.sample < samples and not row.step]
    missing = sorted(set(range(samples)).difference(row.sample for row in rows))
    if missing:
        known = [row for row in every if row.step and row.sample in missing]
        there = {row.key for row in every}
        begun = [row for key, row in sorted(furthest(group[1]["begun"]).items()) if key not in there]
        begun = [row for row in begun if row.sample in missing]
        more = {name: found for name, found in (("known", known), ("begun", begun)) if found}
        yield msgspec.structs.replace(request, **more) if more else request, missing
    tokens = sum(row.thought_tokens for row in rows)
    counts = {"generations": samples, "found": len(rows), "thought_tokens_found": tokens}
    seldom = {"empty": sum(not row.text for row in rows), "continued": sum(row.continued > 0 for row in rows)}
    yield beam.pvalue.TaggedOutput(COUNTS, counts | {name: number for name, number in seldom.items() if number})
