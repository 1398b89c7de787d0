"""A document as a person reads it: its tokens with their nats, its thoughts where they stand, every candidate.

records of a document ─► laid out as the pack stage does ─► source, thoughts, cuts, in the order of the corpus

Both the report's reading room and `thoughtmill inspect` show this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from difficulty.budget.allocation import Allocation
from difficulty.gain.model import GainModel
from difficulty.surprisal import measure_of, token_difficulty_nats
from pipelines.documents.blocks import Block, DocumentView, Mark, Segment, Source, Thought, Unit
from pipelines.documents.runs import runs_of
from pipelines.documents.sample import DocumentRecords
from sharding import storage
from sharding.errors import MillError
from sharding.models.stored_tokenizer import TOKENIZER_NAME, stored_tokenizer
from sharding.models.tokenizer import TextTokenizer, load_tokenizer
from sharding.records.rows import Item, TokenType
from sharding.records.types import Candidate, ScoredSegment
from sharding.storage import manifest
from sharding.storage.json_files import MAX_BYTES, read_json
from sharding.storage.manifest import Manifest
from sharding.storage.output import Output

if TYPE_CHECKING:
    from sharding.packing.layout import Delimiters


class _Spending(msgspec.Struct):
    """`difficulty.json`."""

    histogram: dict[str, Any]
    allocation: dict[str, Any]


class _Learned(msgspec.Struct):
    """Of `stages/gain/model.json` what is needed to read a plan."""

    model: dict[str, Any]


class Reader:
    """Lays out the documents of one run.

    Raises:
        MillError: the tokenizer isn't to be had, or nothing was scored.
    """

    def __init__(self, output: str, stages: Mapping[str, Manifest | None]) -> None:
        scored = stages["score"]
        if scored is None:
            raise MillError(f"{manifest.manifest_url(output, 'score')} is missing: run `thoughtmill score` first")
        self.stages = stages
        self.threshold_nats = float(scored.config["difficulty"]["threshold_nats"])
        self._measure = measure_of(scored.config["difficulty"])
        self.allocation = read_allocation(output, scored)
        self._model = read_model(output, scored, self.allocation)
        self._tokenizer = _tokenizer_of(output, scored)

    @property
    def difficulty_decides(self) -> bool:
        """Whether there is a plan, and a segment's tier follows from its id and difficulty."""
        return self.allocation is not None and self.allocation.by_gain is None

    def tier_name(self, segment_id: str, difficulty_nats: float) -> str | None:
        """The tier of a segment where difficulty decides; otherwise None."""
        if self.allocation is None or not self.difficulty_decides:
            return None
        return self.allocation.tiers[self.allocation.tier_of(segment_id, difficulty_nats)].name

    def tier_names(self, segments: Sequence[ScoredSegment]) -> list[str | None]:
        """The tiers of segments; None before there is a plan, or where its model of gain is no longer there."""
        if self.allocation is None or self.allocation.by_gain is None:
            return [self.tier_name(segment.segment_id, segment.difficulty_nats) for segment in segments]
        if self._model is None:
            return [None] * len(segments)
        gains = self._model.expected(segments).mean
        by_tier = np.zeros((len(segments), len(self.allocation.tiers)))
        for column, name in enumerate(self._model.tiers):
            for place, tier in enumerate(self.allocation.tiers):
                if tier.name == name:
                    by_tier[:, place] = gains[:, column]
        chosen = self.allocation.tiers_by_gain([segment.segment_id for segment in segments], by_tier)
        return [self.allocation.tiers[i].name for i in chosen.tolist()]

    def view(self, document: DocumentRecords) -> DocumentView:
        """The document as the corpus has it; as selection left it, thoughts behind their segments, before it is packed.

        Raises:
            MillError: the output's config is of another version, or its token ids are of another tokenizer.
        """
        ids = [*(scored.input_ids for scored in document.segments), *(c.input_ids for c in document.candidates)]
        if max(part.max(initial=0) for part in ids) >= self._tokenizer.vocab_size:
            raise MillError(f"document {document.doc_id!r} has token ids that its tokenizer doesn't know")
        segments = [
            Segment(
                index=scored.segment_index,
                tier=next((c.tier for c in candidates), tier),
                difficulty_nats=scored.difficulty_nats,
                num_tokens=len(scored.input_ids),
                candidates=candidates,
            )
            for scored, tier in zip(document.segments, self.tier_names(document.segments), strict=True)
            for candidates in [[c for c in document.candidates if c.segment_index == scored.segment_index]]
        ]
        kept = [candidate for candidate in document.candidates if candidate.kept]
        packed = self.stages["pack"]
        if packed is None:
            waiting = "not packed yet: thoughts stand behind their segments here" if kept else ""
            blocks = list(self._behind_segments(document, segments, kept))
            return DocumentView(document.doc_id, segments, waiting, blocks, document.segments[0].source)
        return self._as_packed(document, segments, kept, packed)

    def _as_packed(
        self, document: DocumentRecords, segments: list[Segment], kept: list[Candidate], packed: Manifest
    ) -> DocumentView:
        from pipelines.joints import contaminated_urls
        from sharding.packing.config import config_of, layout_of
        from sharding.packing.laying_out import encode_delimiters, join_thoughts
        from sharding.packing.layout import lay_out
        from sharding.packing.mixing import share_of

        config = config_of(packed)
        selected = self.stages["select"]
        removed = bool(document.contaminated and selected and contaminated_urls("", selected))
        share = share_of(document.doc_id, document.segments[0].source, config, contaminated=removed)
        if not share.copies:
            why = "it overlaps with a benchmark" if removed else "of the weight of its source"
            blocks = list(self._behind_segments(document, segments, kept))
            fate = f"not in the corpus, because {why}"
            return DocumentView(document.doc_id, segments, fate, blocks, document.segments[0].source)
        fate = f"{share.copies} times in the corpus" if share.copies > 1 else ""
        if share.raw and kept:
            fate = "left plain (pack.raw_fraction): its thoughts are not in the corpus"
        thoughts = [] if share.raw else kept
        joined = join_thoughts(document.doc_id, document.segments, thoughts)
        delimiters = encode_delimiters(config, self._tokenizer)
        items, _ = lay_out(
            document.doc_id,
            joined,
            layout_of(packed),
            delimiters,
            config.sequence_length,
            self._tokenizer.dtype,
        )
        blocks = list(self._blocks(document, segments, thoughts, items, delimiters))
        return DocumentView(document.doc_id, segments, fate, blocks, document.segments[0].source)

    def _behind_segments(
        self, document: DocumentRecords, segments: list[Segment], kept: list[Candidate]
    ) -> Iterator[Block]:
        for scored, segment in zip(document.segments, segments, strict=True):
            yield Source(segment=segment, units=self._units(scored, 0, segment.num_tokens), opens=True, closes=True)
            for candidate in kept:
                if candidate.segment_index == segment.index:
                    yield Thought(candidate=candidate, before="", after="")

    def _blocks(
        self,
        document: DocumentRecords,
        segments: list[Segment],
        thoughts: list[Candidate],
        items: Sequence[Item],
        delimiters: Delimiters,
    ) -> Iterator[Block]:
        """Items as blocks: their source tokens are the document's, in order, and their thoughts come in order too."""
        ends = np.cumsum([segment.num_tokens for segment in segments])
        before, after = (
            self._tokenizer.decode(delimiters.thought_open),
            self._tokenizer.decode(delimiters.thought_close),
        )
        waiting = sorted(thoughts, key=lambda t: (t.segment_index, t.sample, t.key))
        at = 0
        for number, item in enumerate(items):
            if number:
                yield Mark("cut")
            for kind, ids in runs_of(item, delimiters):
                if kind == TokenType.DELIMITER:
                    yield Mark("end", self._tokenizer.decode(ids))
                elif kind == TokenType.THOUGHT:
                    for candidate, lost in _taken(waiting, ids):
                        yield Thought(candidate=candidate, before=before, after=after, tokens_lost=lost)
                else:
                    until = at + len(ids)
                    while at < until:
                        i = int(np.searchsorted(ends, at, side="right"))
                        first, start = int(ends[i]) - segments[i].num_tokens, at
                        at = min(until, int(ends[i]))
                        units = self._units(document.segments[i], start - first, at - first)
                        yield Source(segment=segments[i], units=units, opens=start == first, closes=at == ends[i])

    def _units(self, segment: ScoredSegment, start: int, end: int) -> list[Unit]:
        """Tokens `start` to `end` of the segment, those that share a character together."""
        nats, entropy = (np.asarray(a, np.float64) for a in (segment.surprisal_nats, segment.entropy_nats))
        memory = np.asarray(segment.memory_nats, np.float64)
        beyond = None
        if self._measure == "beyond_entropy":
            beyond = token_difficulty_nats(nats, entropy, memory[:0], self._measure)
        units: list[Unit] = []
        first, spelled = start, b""
        for i in range(start, end):
            spelled += self._tokenizer.decode_bytes(segment.input_ids[i : i + 1])
            try:
                text = spelled.decode()
            except UnicodeDecodeError:
                if i + 1 < end:
                    continue
                text = spelled.decode(errors="replace")
            here = slice(first, i + 1)
            known = float(memory[here].sum()) if len(memory) else None
            counts = None if beyond is None else float(beyond[here].sum())
            units.append(Unit(text, float(nats[here].sum()), float(entropy[here].sum()), known, i + 1 - first, counts))
            first, spelled = i + 1, b""
        return units


def _taken(waiting: list[Candidate], ids: np.ndarray) -> Iterator[tuple[Candidate, int]]:
    """The thoughts that a run of thought tokens consists of, taken from those waiting; and what each has lost.

    One that was cut ends its run. One that isn't there was dropped.
    """
    while len(ids) and waiting:
        candidate = waiting.pop(0)
        length = min(len(ids), len(candidate.input_ids))
        if length and np.array_equal(candidate.input_ids[:length], ids[:length]):
            yield candidate, len(candidate.input_ids) - length
            ids = ids[length:]


def read_allocation(output: str, scored: Manifest) -> Allocation | None:
    """The plan of the augment stage, None where none was made for these scores.

    Raises:
        MillError: the file can't be understood.
    """
    url = Output(output).difficulty
    if not storage.exists(url):
        return None
    found = read_json(url, _Spending, "the plan of a budget")
    if found.histogram != scored.facts["histogram"]:
        return None
    return Allocation.from_json(found.allocation)


def read_model(output: str, scored: Manifest, allocation: Allocation | None) -> GainModel | None:
    """The model of gain that a plan was made with; None where the plan has none, or the model isn't there any more.

    Raises:
        MillError: the file can't be understood.
    """
    if allocation is None or allocation.by_gain is None:
        return None
    lender = [manifest.files_url(output, scored).removesuffix("/stages/score")] if scored.folder else []
    for url in (Output(of).gain for of in (output, *lender)):
        if storage.exists(url):
            model = GainModel.from_json(read_json(url, _Learned, "a model of gain", MAX_BYTES).model)
            if model.digest == allocation.by_gain.model:
                return model
    return None


def _tokenizer_of(output: str, scored: Manifest) -> TextTokenizer:
    """The tokenizer of the scores: the one that lies beside them, or else, of an earlier version, the model's.

    Raises:
        MillError: neither is to be had.
    """
    name, folder = scored.config["tokenizer"], storage.join(manifest.files_url(output, scored), "tokenizer")
    if not storage.exists(storage.join(folder, TOKENIZER_NAME)):
        return load_tokenizer(name)
    return stored_tokenizer(folder, name, str(scored.inputs.get("tokenizer")))
