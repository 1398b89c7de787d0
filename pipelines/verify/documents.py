"""Deep, one document: whether the shards hold exactly what was scored and kept for it. Pure; used by `deep`.

items of a document, from all shards ─┬─► source: the stretches that they name, each as often as it should be there
scored and kept records of it        ─┴─► thoughts: those that were kept, in their order, each in its segment's place
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.verify.report import Problem, at
from sharding import storage
from sharding.beam.part_join import JoinedDocument
from sharding.packing import mixing
from sharding.packing.config import LAYOUTS, PackConfig, config_of
from sharding.packing.layouts import within_parts
from sharding.packing.mixing import Share
from sharding.packing.recovery import PlacedThought, source_of, thoughts_of
from sharding.records.base import Record
from sharding.records.families import CONTAMINATED, KEPT
from sharding.records.rows import Item, TokenType
from sharding.storage import manifest
from sharding.storage.manifest import Manifest


class FoundItem(Record, frozen=True):
    """An item as a shard holds it.

    Attributes:
        shard: name of the file.
        row: its row there, from 0.
    """

    item: Item
    shard: str
    row: int


@dataclass(frozen=True, slots=True, eq=False)
class _Thought:
    """A kept thought: its tokens, and where its segment begins and ends in the document."""

    input_ids: np.ndarray
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How the shards were made, as the manifest of the pack stage says.

    Attributes:
        folder: URL that the names of shards are relative to.
        shards: their names.
        within_segments: thoughts stand within their segment or at an end of it, not just in the same sequence.
        rows_are_left_out, thoughts_are_cut, thoughts_are_dropped: whether that happened to any.
        document_end: the ids behind every document.
    """

    folder: str
    shards: tuple[str, ...]
    config: PackConfig
    within_segments: bool
    rows_are_left_out: bool
    thoughts_are_cut: bool
    thoughts_are_dropped: bool
    document_end: tuple[int, ...]

    @classmethod
    def of(cls, output: str, packed: Manifest) -> Packing:
        count = packed.counts.get
        return cls(
            folder=manifest.files_url(output, packed),
            shards=tuple(entry.name for entry in packed.files.get("shards", ())),
            config=config_of(packed),
            within_segments=importlib.import_module(LAYOUTS[packed.config["layout"]]).in_order is within_parts,
            rows_are_left_out=count("rows_left_out", 0) > 0,
            thoughts_are_cut=count("thoughts_cut", 0) > 0,
            thoughts_are_dropped=count("thoughts_dropped", 0) > 0,
            document_end=tuple(packed.facts.get("document_end_ids", ())),
        )

    def at(self, found: FoundItem) -> str:
        return at(storage.join(self.folder, found.shard), found.row, found.item.doc_id)


def compare(
    document: JoinedDocument, items: Sequence[FoundItem], packing: Packing, part_url: str, counts: Counter[str]
) -> list[Problem]:
    """What is wrong with a document in the shards.

    Args:
        document: what was scored, "kept", and "contaminated" where that is left out.
        items: all that the shards hold of it.
        packing: how it was to be packed.
        part_url: the scored part, where nothing else can be named.
        counts: gets what the document adds to the counts of the pack stage.
    """
    scored, thoughts = document.scored, document.beside[KEPT.name]
    contaminated = bool(document.beside[CONTAMINATED.name])
    share = mixing.share_of(scored.doc_id, scored.source, packing.config, contaminated=contaminated)
    counts.update(mixing.share_counts(share, len(scored.input_ids), len(thoughts)))
    if items and not share.copies:
        why = "it overlaps with a benchmark" if share.why_not == "contaminated" else "its source's weight leaves it out"
        return [Problem(packing.at(items[0]), f"should be in no shard: {why}")]
    pieces: dict[int, list[FoundItem]] = {}
    for found in sorted(items, key=lambda found: (found.item.source_start, found.shard, found.row)):
        pieces.setdefault(found.item.source_start, []).append(found)
    counts["rows_left_out_documents"] += (share.copies - len(pieces.get(0, ()))) * bool(len(scored.input_ids))
    problems = list(_wrong_sources(document, pieces, packing))
    if not problems:
        problems = list(_wrong_coverage(document, pieces, share, packing, part_url))
    return problems or _wrong_thoughts(document, pieces, share, packing, part_url, counts)


def _wrong_sources(
    document: JoinedDocument, pieces: Mapping[int, Sequence[FoundItem]], packing: Packing
) -> Iterator[Problem]:
    """Items whose source is not the stretch of the document that they name, or that lack its end."""
    tokens = document.scored.input_ids
    end = np.array(packing.document_end)
    for start, copies in pieces.items():
        for found in copies:
            source = source_of(found.item)
            stop = start + len(source)
            if not len(source) or start < 0 or not np.array_equal(source, tokens[start:stop]):
                said = f"its source tokens {start} to {stop} are not those of the {len(tokens)} that were scored"
                yield Problem(packing.at(found), said)
            elif stop == len(tokens) and len(end):
                ids, types = found.item.input_ids[-len(end) :], found.item.token_type[-len(end) :]
                if not (np.array_equal(ids, end) and (types == TokenType.DELIMITER).all()):
                    said = f"ends with the ids {ids.tolist()}, not with those after a document, {end.tolist()}"
                    yield Problem(packing.at(found), said)


def _wrong_coverage(
    document: JoinedDocument,
    pieces: Mapping[int, Sequence[FoundItem]],
    share: Share,
    packing: Packing,
    part_url: str,
) -> Iterator[Problem]:
    """Source that is missing or there too often. Every piece in `pieces` is what it says."""
    where = at(part_url, None, document.scored.doc_id)
    num_tokens = len(document.scored.input_ids)
    lengths = {start: {len(source_of(copy.item)) for copy in copies} for start, copies in pieces.items()}
    there = sum(len(copies) * max(lengths[start]) for start, copies in pieces.items())
    if not packing.rows_are_left_out and num_tokens and share.copies and not pieces:
        yield Problem(where, "no shard holds it")
        return
    position = 0
    for start, copies in pieces.items():
        gap, times = start - position, len(copies)
        position = start + max(lengths[start])
        if gap < 0 or len(lengths[start]) > 1 or times > share.copies:
            said = f"the shards hold its source tokens {start} to {position} more than {_times(share.copies)}"
            yield Problem(where, said)
            return
        if not packing.rows_are_left_out and (gap or times < share.copies):
            break
    else:
        if packing.rows_are_left_out or position == num_tokens or not share.copies:
            return
    said = f"the shards hold {there} source tokens, not all of its {num_tokens} {_times(share.copies)}"
    yield Problem(where, said)


def _wrong_thoughts(
    document: JoinedDocument,
    pieces: Mapping[int, Sequence[FoundItem]],
    share: Share,
    packing: Packing,
    part_url: str,
    counts: Counter[str],
) -> list[Problem]:
    """Thoughts that were not kept for the document, or stand elsewhere, and kept ones that are missing."""
    kept = [] if share.raw or not share.copies else _kept(document)
    first = placed = 0
    problems: list[Problem] = []
    for copies in pieces.values():
        # All copies are cut alike: the same thoughts stand in each.
        after = first
        for found in copies:
            after, there = first, set[int]()
            start, stop = found.item.source_start, found.item.source_start + len(source_of(found.item))
            for run in thoughts_of(found.item):
                match = _match(run, kept, after, (start, stop), packing)
                if match is None:
                    problems.append(Problem(packing.at(found), _why_not(run, kept, after, share.copies)))
                    continue
                after = match.thoughts[-1] + 1
                there.update(match.thoughts)
                counts["thoughts_cut"] += match.cut
            placed += len(there)
            inside = {n for n, t in enumerate(kept) if start <= t.start < t.end <= stop}
            if (missing := len(inside - there)) and not (problems or packing.thoughts_are_dropped):
                said = f"lacks {missing} of the {len(inside)} thoughts that were kept for its segments"
                problems.append(Problem(packing.at(found), said))
            if not (problems or _same_items(found.item, copies[0].item)):
                problems.append(Problem(packing.at(found), "is not the same as in its other copies"))
        first = after
    given = 0 if share.raw else share.copies * len(document.beside[KEPT.name])
    counts["thoughts"] += placed
    counts["thoughts_dropped"] += given - placed
    lost = share.copies * len(kept) - placed
    if lost and not (problems or packing.thoughts_are_dropped or packing.rows_are_left_out):
        where = at(part_url, None, document.scored.doc_id)
        problems.append(
            Problem(where, f"{lost} of the {share.copies * len(kept)} thoughts kept for it are in no shard")
        )
    return problems


def _same_items(one: Item, other: Item) -> bool:
    return one is other or (
        np.array_equal(one.input_ids, other.input_ids) and np.array_equal(one.token_type, other.token_type)
    )


def _kept(document: JoinedDocument) -> list[_Thought]:
    """The thoughts in the order in which they are to stand; empty ones never do."""
    starts = document.scored.segment_starts.tolist()
    ends = [*starts[1:], len(document.scored.input_ids)]
    return [
        _Thought(thought.input_ids, starts[thought.segment_index], ends[thought.segment_index])
        for thought in sorted(document.beside[KEPT.name], key=lambda t: (t.segment_index, t.sample, t.key))
        if len(thought.input_ids)
    ]


@dataclass(frozen=True, slots=True)
class _Match:
    """Kept thoughts that a run of thought tokens is.

    Attributes:
        thoughts: their numbers; several where no delimiter stands between.
        cut: whether it lost its end.
    """

    thoughts: tuple[int, ...]
    cut: bool = False


def _match(
    run: PlacedThought, kept: Sequence[_Thought], first: int, within: tuple[int, int], packing: Packing
) -> _Match | None:
    """What a run is: kept thoughts from the one numbered `first` on, in their order, one behind the other.

    Of several ways the one that leaves the most for what follows; kept thoughts between may be missing.
    """
    ids, (item_start, item_stop) = run.input_ids, within
    reached: dict[int, tuple[int, ...]] = {0: ()}  # so many tokens of the run -> the thoughts that they are
    for number in range(first, len(kept)):
        thought = kept[number]
        if packing.within_segments:
            belongs = thought.start <= run.place <= thought.end
        else:
            belongs = thought.start < item_stop and thought.end > item_start
        if not belongs:
            continue
        for offset, thoughts in list(reached.items()):
            end = offset + len(thought.input_ids)
            if end <= len(ids) and np.array_equal(ids[offset:end], thought.input_ids):
                reached.setdefault(end, (*thoughts, number))
        if len(ids) in reached:
            return _Match(reached[len(ids)])
        if packing.thoughts_are_cut and np.array_equal(ids, thought.input_ids[: len(ids)]):
            return _Match((number,), cut=True)
    return None


def _why_not(run: PlacedThought, kept: Sequence[_Thought], first: int, copies: int) -> str:
    tokens = len(run.input_ids)
    same = [number for number, one in enumerate(kept) if np.array_equal(one.input_ids, run.input_ids)]
    if not same:
        return f"a thought of {tokens} tokens is not one of the {len(kept)} kept for its document"
    if min(same) < first:
        return f"a thought of {tokens} tokens is there more than the {copies} times that its document is"
    return f"a thought of {tokens} tokens is not beside its segment"


def _times(copies: int) -> str:
    return "once" if copies == 1 else f"{copies} times"
