"""Corpora with another trace each epoch (`pack.trace_per_epoch`): what they hold, and what can't be done with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby

import pyarrow as pa

from sharding.beam.part_names import part_of
from sharding.errors import RequestError
from sharding.packing.config import config_of
from sharding.packing.epochs import count_name, in_turn, least_value
from sharding.records.families import EPOCH_ROWS, KEPT, REJECTED
from sharding.records.types import Candidate, FileEntry
from sharding.shards.rows import epoch_of
from sharding.storage import manifest
from sharding.storage.arrow_files import read_batches, read_records
from sharding.storage.manifest import Manifest

EPOCHS = pa.field("epochs", pa.list_(pa.int32()))
"""The column of the epochs that show a trace."""

_PLACE = ("doc_id", "segment_index", "sample")
_DECIDES = (*_PLACE, "reasons", "value", "chance_value")


def refuse_several(output: str, packed: Manifest | None, why: str) -> None:
    """Refuse what is not made for a corpus of several epochs, rather than do it to the first alone.

    Args:
        packed: the manifest of its pack stage; None where it has none.
        why: a clause that ends the sentence.

    Raises:
        RequestError: it has several.
    """
    if packed is None or not packed.files.get(EPOCH_ROWS.name):
        return
    epochs = config_of(packed).trace_per_epoch
    raise RequestError(
        f"pack.trace_per_epoch: {output} has {epochs} epochs with shards of their own, and {why}: `thoughtmill pack "
        "CONFIG --set pack.trace_per_epoch=1 --replace` packs it with one, which buys nothing, and afterwards the same "
        f"command with {epochs} makes the others again"
    )


def shards_by_epoch(packed: Manifest) -> Iterator[tuple[int, list[FileEntry]]]:
    """The shards of each later epoch, by its number."""
    later = packed.files.get(EPOCH_ROWS.name, [])
    for epoch in sorted(set(map(epoch_of, later))):
        yield epoch, [entry for entry in later if epoch_of(entry) == epoch]


def epoch_counts(later: Sequence[FileEntry]) -> dict[str, int]:
    """The counts that come of the shards of the later epochs."""
    counts = Counter[str]()
    for entry in later:
        epoch = epoch_of(entry)
        counts[count_name(epoch, "rows")] += entry.rows
        counts[count_name(epoch, "rows_without_labels")] += entry.unlabelled_rows
        counts.update({count_name(epoch, f"tokens_{kind}"): number for kind, number in entry.tokens.items()})
    return dict(counts)


def shown_parts(
    output: str, selected: Manifest, epochs: int, columns: Sequence[str]
) -> list[Callable[[], Iterator[pa.RecordBatch]]]:
    """What reads each part of the traces that any epoch shows, by document, segment and sample.

    Of several epochs a part is held in memory, and the column `EPOCHS` is there beside those that are wanted.

    Args:
        selected: the manifest of the select stage.
        epochs: how many there are.
        columns: of `Candidate`, those that say which trace it is among them.
    """
    kept, rejected = (manifest.file_urls(output, selected, family.name) for family in (KEPT, REJECTED))
    if epochs == 1:
        return [partial(read_batches, url, columns, kind=Candidate) for url in kept]
    rejected_of, least = {part_of(url)[0]: url for url in rejected}, least_value(selected.config["select"])
    return [partial(_traces, url, rejected_of.get(part_of(url)[0]), columns, epochs, least) for url in kept]


def _traces(
    kept_url: str, rejected_url: str | None, columns: Sequence[str], epochs: int, least: float | None
) -> Iterator[pa.RecordBatch]:
    """Those of the parts of one number of either family; None where none was rejected."""
    shown = _shown(kept_url, rejected_url, epochs, least)
    tables = [
        pa.Table.from_batches(read_batches(url, columns, kind=Candidate))
        for url in filter(None, (kept_url, rejected_url))
    ]
    both = pa.concat_tables(tables)
    places = zip(*(both.column(name).to_pylist() for name in _PLACE), strict=True)
    both = both.append_column(EPOCHS, pa.array([shown.get(place) for place in places], EPOCHS.type))
    both = both.filter(both.column(EPOCHS.name).is_valid())
    yield from both.sort_by([(name, "ascending") for name in _PLACE]).combine_chunks().to_batches()


def _shown(
    kept_url: str, rejected_url: str | None, epochs: int, least: float | None
) -> dict[tuple[str, int, int], list[int]]:
    """(document, segment, sample) → the epochs that show it, of all traces that one does."""

    def documents(url: str | None) -> Iterator[tuple[str, list[Candidate]]]:
        records = read_records(url, Candidate, _DECIDES) if url is not None else ()
        for doc_id, found in groupby(records, key=lambda one: one.doc_id):
            yield doc_id, list(found)

    shown: dict[tuple[str, int, int], list[int]] = {}
    rejected = dict(documents(rejected_url))
    for doc_id, kept in documents(kept_url):
        for traces in in_turn(kept, rejected.get(doc_id, ()), least):
            for turn, one in enumerate(traces[:epochs]):
                shown[doc_id, one.segment_index, one.sample] = list(range(turn, epochs, len(traces)))
    return shown
