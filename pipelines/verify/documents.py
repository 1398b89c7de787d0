"""Deep, one document: whether the shards hold exactly what was scored and kept for it. Pure; used by `deep`.

items of a document, from all shards ─┬─► source: the stretches that they name, each as often as it should be there
scored and kept records of it        ─┴─► thoughts: those that were kept, in their order, each in its segment's place
"""

from __future__ import annotations

import importlib
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.verify.report import Problem, at
from pipelines.verify.thoughts import kept_thoughts, match_run, why_not
from sharding import storage
from sharding.beam.part_join import JoinedDocument
from sharding.errors import MillError
from sharding.models.tokenizer import TextTokenizer, load_tokenizer
from sharding.packing import epochs, mixing
from sharding.packing.as_trainer import as_trainer, difference_counts
from sharding.packing.config import LAYOUTS, Layout, PackConfig, config_of, layout_of
from sharding.packing.mixing import Share
from sharding.packing.recovery import source_of, thoughts_of
from sharding.records.base import Record
from sharding.records.families import CONTAMINATED, EPOCH_ROWS, KEPT, ROWS
from sharding.records.rows import Item, TokenType
from sharding.shards.rows import epoch_of
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
class _Piece:
    """An item with its source taken out: tokens `start` to `stop` of the document, as it says."""

    found: FoundItem
    source: np.ndarray

    @property
    def start(self) -> int:
        return self.found.item.source_start

    @property
    def stop(self) -> int:
        return self.start + len(self.source)


Pieces = Mapping[int, Sequence[_Piece]]
"""Where pieces of a document begin → all copies of that piece."""


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How the shards were made, as the manifest of the pack stage says.

    Attributes:
        folder: URL that the names of shards are relative to.
        shards: their names.
        layout: where thoughts stand.
        rows_are_left_out, thoughts_are_cut, thoughts_are_dropped: whether that happened to any.
        document_start, document_end: the ids before and behind every document.
        epoch: the one whose traces the shards show.
        least_value: what other traces are worth that it shows: see `epochs.least_value`.
        tokenizer, tokenizer_fingerprint: of the corpus; loaded where documents were tokenized for it anew.
    """

    folder: str
    shards: tuple[str, ...]
    config: PackConfig
    layout: Layout
    rows_are_left_out: bool
    thoughts_are_cut: bool
    thoughts_are_dropped: bool
    document_end: tuple[int, ...]
    document_start: tuple[int, ...] = ()
    epoch: int = 0
    least_value: float | None = None
    tokenizer: str = ""
    tokenizer_fingerprint: str = ""

    @classmethod
    def of(cls, output: str, stages: Mapping[str, Manifest], epoch: int = 0) -> Packing:
        """How those of an epoch were made, from the manifests of the stages select and pack."""
        packed, family = stages["pack"], EPOCH_ROWS if epoch else ROWS

        def count(name: str, absent: int) -> int:
            return packed.counts.get(epochs.count_name(epoch, name) if epoch else name, absent)

        return cls(
            folder=manifest.files_url(output, packed),
            shards=tuple(entry.name for entry in packed.files.get(family.name, ()) if epoch_of(entry) == epoch),
            config=config_of(packed),
            layout=layout_of(packed),
            rows_are_left_out=count("rows_left_out", 0) > 0,
            thoughts_are_cut=count("thoughts_cut", 0) > 0,
            thoughts_are_dropped=count("thoughts_dropped", 0) > 0,
            document_end=tuple(packed.facts.get("document_end_ids", ())),
            document_start=tuple(packed.facts.get("document_start_ids", ())),
            epoch=epoch,
            least_value=epochs.least_value(stages["select"].config["select"]) if epoch else None,
            tokenizer=packed.config["tokenizer"],
            tokenizer_fingerprint=packed.facts["tokenizer_fingerprint"],
        )

    def loaded_tokenizer(self) -> TextTokenizer:
        """The tokenizer of the corpus.

        Raises:
            MillError: it can't be had, or is another one by now.
        """
        loaded = load_tokenizer(self.tokenizer)
        if loaded.fingerprint != self.tokenizer_fingerprint:
            raise MillError(f"tokenizer {self.tokenizer}: it is not the one that the shards were packed with any more")
        return loaded

    def at(self, found: FoundItem) -> str:
        return at(storage.join(self.folder, found.shard), found.row, found.item.doc_id)


def compare(
    document: JoinedDocument, items: Sequence[FoundItem], packing: Packing, part_url: str, counts: Counter[str]
) -> list[Problem]:
    """What is wrong with a document in the shards.

    Args:
        document: what was scored, "kept", and "contaminated" where that is left out; and "rejected" for later epochs.
        items: all that the shards hold of it.
        packing: how it was to be packed.
        part_url: the scored part, where nothing else can be named.
        counts: gets what the document adds to the counts of the pack stage.
    """
    document = epochs.shown_in(document, packing.epoch, packing.least_value)
    scored, thoughts = document.scored, document.beside[KEPT.name]
    contaminated = bool(document.beside[CONTAMINATED.name])
    share = mixing.share_of(scored.doc_id, scored.source, packing.config, contaminated=contaminated)
    if share.copies and packing.config.tokenize == "as_trainer":
        document = as_trainer(document, packing.loaded_tokenizer())
        counts.update(difference_counts(len(scored.input_ids), len(document.scored.input_ids)))
        scored, thoughts = document.scored, document.beside[KEPT.name]
    counts.update(mixing.share_counts(share, len(scored.input_ids), len(thoughts)))
    if items and not share.copies:
        why = "it overlaps with a benchmark" if share.why_not == "contaminated" else "its source's weight leaves it out"
        return [Problem(packing.at(items[0]), f"should be in no shard: {why}")]
    pieces: dict[int, list[_Piece]] = {}
    for found in sorted(items, key=lambda found: (found.item.source_start, found.shard, found.row)):
        pieces.setdefault(found.item.source_start, []).append(_Piece(found, source_of(found.item)))
    counts["rows_left_out_documents"] += (share.copies - len(pieces.get(0, ()))) * bool(len(scored.input_ids))
    problems = list(_wrong_sources(document, pieces, packing))
    if not problems:
        problems = list(_wrong_coverage(document, pieces, share, packing, part_url))
    return problems or _wrong_thoughts(document, pieces, share, packing, part_url, counts)


def _wrong_sources(document: JoinedDocument, pieces: Pieces, packing: Packing) -> Iterator[Problem]:
    """Items whose source is not the stretch of the document that they name, or that lack its end."""
    tokens = document.scored.input_ids
    end, begin = np.array(packing.document_end), np.array(packing.document_start)
    for piece in itertools.chain.from_iterable(pieces.values()):
        start, stop = piece.start, piece.stop
        if not len(piece.source) or start < 0 or not np.array_equal(piece.source, tokens[start:stop]):
            said = f"its source tokens {start} to {stop} are not those of the {len(tokens)} that were scored"
            yield Problem(packing.at(piece.found), said)
            continue
        if packing.config.surprisal and _wrong_surprisal(piece, document):
            yield Problem(packing.at(piece.found), "its surprisal is not that of its tokens as they were scored")
        if start == 0 and len(begin):
            ids, types = (of[: len(begin)] for of in (piece.found.item.input_ids, piece.found.item.token_type))
            if not (np.array_equal(ids, begin) and (types == TokenType.DELIMITER).all()):
                said = f"begins with the ids {ids.tolist()}, not with those before a document, {begin.tolist()}"
                yield Problem(packing.at(piece.found), said)
        if stop == len(tokens) and len(end):
            ids, types = (of[-len(end) :] for of in (piece.found.item.input_ids, piece.found.item.token_type))
            if not (np.array_equal(ids, end) and (types == TokenType.DELIMITER).all()):
                said = f"ends with the ids {ids.tolist()}, not with those after a document, {end.tolist()}"
                yield Problem(packing.at(piece.found), said)


def _wrong_surprisal(piece: _Piece, document: JoinedDocument) -> bool:
    item, scored = piece.found.item, document.scored.surprisal_nats[piece.start : piece.stop]
    is_source = item.token_type == TokenType.SOURCE
    if len(item.surprisal) != len(item.input_ids) or not np.isnan(item.surprisal[~is_source]).all():
        return True
    return not np.array_equal(item.surprisal[is_source], scored, equal_nan=True)


def _wrong_coverage(
    document: JoinedDocument, pieces: Pieces, share: Share, packing: Packing, part_url: str
) -> Iterator[Problem]:
    """Source that is missing or there too often. Every piece in `pieces` is what it says."""
    where = at(part_url, None, document.scored.doc_id)
    num_tokens = len(document.scored.input_ids)
    there = sum(len(copy.source) for copies in pieces.values() for copy in copies)
    if not packing.rows_are_left_out and num_tokens and share.copies and not pieces:
        yield Problem(where, "no shard holds it")
        return
    position = 0
    for start, copies in pieces.items():
        gap, times = start - position, len(copies)
        position = max(copy.stop for copy in copies)
        if gap < 0 or position > min(copy.stop for copy in copies) or times > share.copies:
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
    pieces: Pieces,
    share: Share,
    packing: Packing,
    part_url: str,
    counts: Counter[str],
) -> list[Problem]:
    """Thoughts that were not kept for the document, or stand elsewhere, and kept ones that are missing."""
    kept = [] if share.raw or not share.copies else kept_thoughts(document)
    belongs = importlib.import_module(LAYOUTS[packing.layout]).belongs
    first = placed = 0
    problems: list[Problem] = []
    for copies in pieces.values():
        # All copies are cut alike: the same thoughts stand in each.
        after = first
        for copy in copies:
            after, there, where = first, set[int](), copy.found
            piece = range(copy.start, copy.stop)
            for run in thoughts_of(copy.found.item):
                match = match_run(run, kept, after, piece, belongs, may_be_cut=packing.thoughts_are_cut)
                if match is None:
                    problems.append(Problem(packing.at(where), why_not(run, kept, after, share.copies)))
                    continue
                after = match.thoughts[-1] + 1
                there.update(match.thoughts)
                counts["thoughts_cut"] += match.cut
            placed += len(there)
            inside = {n for n, t in enumerate(kept) if piece.start <= t.segment.start < t.segment.stop <= piece.stop}
            if (missing := len(inside - there)) and not (problems or packing.thoughts_are_dropped):
                said = f"lacks {missing} of the {len(inside)} thoughts that were kept for its segments"
                problems.append(Problem(packing.at(where), said))
            if not (problems or _same_items(where.item, copies[0].found.item)):
                problems.append(Problem(packing.at(where), "is not the same as in its other copies"))
        first = after
    given = 0 if share.raw else share.copies * len(document.beside[KEPT.name])
    counts["thoughts"] += placed
    counts["thoughts_dropped"] += given - placed
    lost = share.copies * len(kept) - placed
    if lost and not (problems or packing.thoughts_are_dropped or packing.rows_are_left_out):
        said = f"{lost} of the {share.copies * len(kept)} thoughts kept for it are in no shard"
        problems.append(Problem(at(part_url, None, document.scored.doc_id), said))
    return problems


def _same_items(one: Item, other: Item) -> bool:
    return one is other or (
        np.array_equal(one.input_ids, other.input_ids) and np.array_equal(one.token_type, other.token_type)
    )


def _times(copies: int) -> str:
    return "once" if copies == 1 else f"{copies} times"
