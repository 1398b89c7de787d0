"""Finding passages for the segments of a document, in an index that leaves out what the document says itself."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from augment.contexts.passage_index import PassageIndex, load_index
from augment.contexts.passages import runs_of
from augment.requests.contexts import Contexts
from augment.requests.planner import TracePlanner
from augment.requests.tiers import PASSAGE_CHARACTERS
from augment.selection.words import words_of
from sharding.models.tokenizer import TextTokenizer, load_tokenizer
from sharding.records.types import ScoredSegment


class DocumentPassages:
    """Finds passages for one document. What is in it is looked at when the first are asked for."""

    def __init__(self, index: PassageIndex, segments: Sequence[ScoredSegment], tokenizer: TextTokenizer) -> None:
        self._index, self._segments, self._tokenizer = index, segments, tokenizer

    @cached_property
    def _own(self) -> frozenset[str]:
        return runs_of(words_of("".join(self._tokenizer.decode(segment.input_ids) for segment in self._segments)))

    def find(self, spans: Sequence[str], number: int) -> list[str]:
        """The texts of the passages that say most about hard spans, the best first."""
        found = self._index.find(spans, self._segments[0].doc_id, self._own, number)
        return [passage.text for passage in found]


class AsLongAsPassages:
    """Texts as long as passages can be, to tell the length of prompts before there is an index."""

    def __init__(self, text: str) -> None:
        self._text = text[:PASSAGE_CHARACTERS]

    def find(self, spans: Sequence[str], number: int) -> list[str]:
        """As many as are asked for."""
        del spans
        return [self._text] * number


def contexts_of(planner: TracePlanner, segments: Sequence[ScoredSegment], contractions: Sequence[str] = ()) -> Contexts:
    """What there is to show of a document beside its segments.

    Args:
        segments: all of it.
        contractions: of it up to and with each segment.

    Raises:
        MillError: the index can't be read.
    """
    if planner.index is None or not segments:
        return Contexts(contractions=contractions)
    index = load_index(planner.index.url, planner.index.digest, planner.index.server)
    passages = DocumentPassages(index, segments, load_tokenizer(planner.tokenizer))
    return Contexts(contractions=contractions, passages=passages)
