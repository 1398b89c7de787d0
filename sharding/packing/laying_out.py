"""Documents and their kept thoughts as items: the pure part of the pack stage's first step.

scored document + kept thoughts ──► share of it in the corpus (mixing) ──► items (layout), and what was counted
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from sharding.beam.part_join import JoinedDocument
from sharding.errors import RequestError
from sharding.models.tokenizer import TextTokenizer
from sharding.packing import mixing, order
from sharding.packing.as_trainer import as_trainer, difference_counts
from sharding.packing.config import PackConfig
from sharding.packing.epochs import COUNTS, count_name, shown_in
from sharding.packing.layout import Delimiters, Layout, LayoutCounts, SegmentTokens, lay_out, lay_out_plain, least_room
from sharding.packing.mixing import Share
from sharding.packing.surprisal import with_surprisal
from sharding.records.rows import Item, Split
from sharding.records.types import Candidate, ScoredSegment

LaidOut = tuple[list[Item], LayoutCounts]
"""The items of a document, of one copy, and what was counted."""


@dataclass(frozen=True)
class DocumentLayout:
    """How the documents of a corpus are laid out.

    Attributes:
        config: the `pack` section.
        layout: where thoughts stand.
        tokenizer: the training tokenizer.
        delimiters: what stands around thoughts and after documents.
        least_value: what other traces must be worth to be shown in later epochs: see `epochs.least_value`.
    """

    config: PackConfig
    layout: Layout
    tokenizer: TextTokenizer
    delimiters: Delimiters
    least_value: float | None = None

    def items(self, document: JoinedDocument, counts: Counter[str]) -> Iterator[Item]:
        """The items of a document, as often as it is in the corpus; what became of it goes into `counts`.

        Args:
            document: with its "kept" thoughts, with what is "contaminated" where that is left out, with what is said
                of its "near_copies" where they were looked for, and with its "rejected" traces where later epochs show
                them.
            counts: added to.

        Raises:
            AssertionError: the document and its thoughts don't fit together.
        """
        config, scored = self.config, document.scored
        contaminated = bool(document.beside["contaminated"])
        share = mixing.share_of(scored.doc_id, scored.source, config, contaminated=contaminated)
        if not share.copies:
            counts.update(mixing.share_counts(share, len(scored.input_ids), len(document.beside["kept"])))
            return
        split = self._split_of(document)
        spelled = self._spelled(document)
        if config.tokenize == "as_trainer":
            counts.update(difference_counts(len(scored.input_ids), len(spelled.scored.input_ids)))
        counts.update(mixing.share_counts(share, len(spelled.scored.input_ids), len(spelled.beside["kept"])))
        # What is validated on stays the same, or its losses couldn't be compared.
        (items, laid_out), *later = self._epochs(document, share, config.trace_per_epoch if split == "train" else 1)
        yield from _copies(items, share, split)
        # Documents count once, however often they are there; their items, thoughts and tokens as often as they are.
        for name, count in laid_out.nonzero().items():
            counts[name] += count if name.startswith("documents") else share.copies * count
        counts[f"documents_{split}"] += 1
        for epoch, (items, of_epoch) in enumerate(later, start=1):
            yield from _copies(items, share, split, epoch)
            for name in COUNTS:
                counts[count_name(epoch, name)] += share.copies * getattr(of_epoch, name)

    def _spelled(self, document: JoinedDocument) -> JoinedDocument:
        """The document in the ids that the corpus has."""
        return as_trainer(document, self.tokenizer) if self.config.tokenize == "as_trainer" else document

    def _epochs(self, document: JoinedDocument, share: Share, epochs: int) -> list[LaidOut]:
        """The document as each epoch shows it, in as many pieces in all: rows are made as many of them."""
        shown = [shown_in(document, epoch, self.least_value) for epoch in range(epochs)]
        first = self._laid_out(self._spelled(document), share)
        found = [first if of is document else self._laid_out(self._spelled(of), share) for of in shown]
        most = max(len(items) for items, _ in found)
        return [
            one if len(one[0]) == most else self._in_pieces(self._spelled(of), share, most, one)
            for of, one in zip(shown, found, strict=True)
        ]

    def _in_pieces(self, document: JoinedDocument, share: Share, wanted: int, otherwise: LaidOut) -> LaidOut:
        """The document in so many pieces or more, by the largest sequence length that comes to them.

        As it was otherwise where thoughts would lose tokens by it: other documents have pieces enough.
        """
        low, high, best = least_room(self.delimiters) - 1, self.config.sequence_length, otherwise
        while high - low > 1:
            tried = (low + high) // 2
            found = self._laid_out(document, share, tried)
            if len(found[0]) >= wanted:
                low, best = tried, found
            else:
                high = tried
        lost = best[1].thought_tokens_lost > otherwise[1].thought_tokens_lost
        return otherwise if lost else best

    def _laid_out(self, document: JoinedDocument, share: Share, max_tokens: int | None = None) -> LaidOut:
        config, scored, thoughts = self.config, document.scored, document.beside["kept"]
        doc_id, form = scored.doc_id, (self.delimiters, max_tokens or config.sequence_length, self.tokenizer.dtype)
        if share.raw or not thoughts:
            items, laid_out = lay_out_plain(doc_id, scored.input_ids, scored.segment_starts, *form)
        else:
            joined = join_thoughts(doc_id, list(scored.segments()), thoughts)
            items, laid_out = lay_out(doc_id, joined, self.layout, *form)
        if config.surprisal:
            items = [with_surprisal(item, scored.surprisal_nats) for item in items]
        return items, laid_out

    def _split_of(self, document: JoinedDocument) -> Split:
        if not (fraction := self.config.validation_fraction):
            return "train"
        text = self.tokenizer.decode(document.scored.input_ids)
        return order.split_of(text, fraction, cluster_of(document))


def _copies(items: Iterable[Item], share: Share, split: Split, epoch: int = 0) -> Iterator[Item]:
    for copy in range(share.copies):
        yield from (msgspec.structs.replace(item, copy=copy, split=split, epoch=epoch) for item in items)


def cluster_of(document: JoinedDocument) -> str:
    """What a document's near-copies have in common; "" where it has none."""
    return next((found.cluster for found in document.beside.get("near_copies", ())), "")


def join_thoughts(doc_id: str, segments: Sequence[ScoredSegment], thoughts: Sequence[Candidate]) -> list[SegmentTokens]:
    """A document's segments in order, each with its kept thoughts in the order of their samples.

    Raises:
        AssertionError: a segment is missing or double: the scored parts are not what their manifest says.
    """
    ordered = sorted(segments, key=lambda segment: segment.segment_index)
    indices = [segment.segment_index for segment in ordered]
    if not ordered or indices != list(range(ordered[0].num_segments)):
        raise AssertionError(f"document {doc_id!r} has segments {indices} of {ordered[:1]}")
    by_segment: dict[int, list[Candidate]] = {}
    for thought in sorted(thoughts, key=lambda t: (t.segment_index, t.sample, t.key)):
        by_segment.setdefault(thought.segment_index, []).append(thought)
    return [segment_tokens(segment, by_segment.get(segment.segment_index, [])) for segment in ordered]


def segment_tokens(segment: ScoredSegment, thoughts: Sequence[Candidate]) -> SegmentTokens:
    """A segment with its thoughts as the layout takes it.

    Raises:
        AssertionError: the generators of its thoughts saw different amounts of it.
    """
    shown = {thought.shown_tokens for thought in thoughts} or {len(segment.input_ids)}
    if len(shown) > 1:
        raise AssertionError(f"segment {segment.segment_id!r} has thoughts behind {sorted(shown)} of its tokens")
    return SegmentTokens(segment.input_ids, [thought.input_ids for thought in thoughts], shown.pop())


def encode_delimiters(config: PackConfig, tokenizer: TextTokenizer) -> Delimiters:
    """The delimiters of the config as token ids.

    Raises:
        RequestError: what stands before or after a document is not one token of the vocabulary.
        MillError: `document_end` is left to the tokenizer, which has no such token.
    """
    if config.document_end is None:
        document_end = np.array([tokenizer.end_of_text_id], tokenizer.dtype)
    else:
        document_end = _one_token("pack.document_end", config.document_end, tokenizer)
    return Delimiters(
        thought_open=tokenizer.encode_trusted(config.thought_open),
        thought_close=tokenizer.encode_trusted(config.thought_close),
        document_end=document_end,
        document_start=_one_token("pack.document_start", config.document_start, tokenizer),
    )


def _one_token(key: str, text: str, tokenizer: TextTokenizer) -> np.ndarray:
    """The id of a text that is one token; none of an empty one.

    Spelled with several, it would separate nothing: trainers look for one id.
    """
    ids = tokenizer.encode_trusted(text)
    if text and len(ids) != 1:
        raise RequestError(
            f"{key}: {text!r} is {len(ids)} tokens of {tokenizer.name}, and trainers look for one: name an added token "
            'of its tokenizer.json, or leave it empty ("")'
        )
    return ids


END_OF_TURN = frozenset(
    {"<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "<|end_of_turn|>", "<|END_OF_TURN_TOKEN|>"}
)
"""Tokens that end a turn of a chat: of Llama 3, ChatML, Gemma, Phi and harmony, OpenChat and Command."""


def delimiter_warnings(config: PackConfig, tokenizer: TextTokenizer) -> list[str]:
    """What is odd about the tokens around documents, each as a sentence without its full stop; most often nothing."""
    end = encode_delimiters(config, tokenizer).document_end
    text = tokenizer.decode(end)
    if text not in END_OF_TURN:
        return []
    return [
        f"documents end with {text}, the end of a turn in a chat: a model trained on them learns to end its turn at "
        "the end of a text; pack.document_end names another token, such as the base model's end of text"
    ]


def split_shards(config: PackConfig) -> dict[Split, int]:
    """Name of each split → number of its shards; validation gets its share of them, at least one."""
    shards: dict[Split, int] = {"train": config.num_shards}
    if config.validation_fraction > 0:
        shards["validation"] = max(1, round(config.num_shards * config.validation_fraction))
    return shards
