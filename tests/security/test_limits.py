"""Numbers at their ends: nats that are none, the widest vocabularies of two bytes; each is right or one clear error."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from difficulty.config import DifficultyConfig
from difficulty.scorers.protocol import TokenScores
from difficulty.scoring import score_segments
from sharding import storage
from sharding.errors import MillError
from sharding.models.tokenizer import TextTokenizer, load_tokenizer
from sharding.records.families import SEGMENTS
from sharding.records.types import Document, ScoredSegment
from sharding.shards.dataset import PackedDataset
from tests.packed_output import write_output

LARGEST_HALF = float(np.finfo(np.float16).max)


class Says:
    """A scorer, or a server behind one, that gives the third token of every text such nats."""

    name, rehearsal = "says", True

    def __init__(self, tokenizer: TextTokenizer, what: str, nats: float) -> None:
        self._tokenizer, self._what, self._nats = tokenizer, what, nats

    def score(self, texts: Sequence[str]) -> list[TokenScores]:
        scores = []
        for text in texts:
            ends = self._tokenizer.byte_ends(self._tokenizer.encode(text))
            nats = {what: np.ones(len(ends), np.float32) for what in ("surprisal_nats", "entropy_nats")}
            nats[self._what][2] = self._nats
            scores.append(TokenScores(ends, **nats))
        return scores

    def nats_after(self, prefixes: Sequence[str], text: str, skipped: int) -> np.ndarray:
        raise NotImplementedError


def segments_of(tokenizer: TextTokenizer, what: str, nats: float) -> list[ScoredSegment]:
    document = Document(doc_id="the one", text="a text of some tokens", origin="here")
    encoded = [(document, tokenizer.encode(document.text))]
    config = DifficultyConfig(scorer="rehearsal")
    return list(score_segments(encoded, tokenizer, Says(tokenizer, what, nats), config))


@pytest.mark.parametrize("what", ["surprisal_nats", "entropy_nats"])
@pytest.mark.parametrize("nats", [math.nan, -math.inf])
def test_nats_that_are_no_numbers_are_an_error_that_names_the_document(
    byte_tokenizer: str, what: str, nats: float
) -> None:
    with pytest.raises(MillError, match="the scorer gave document 'the one' nats that are not finite numbers"):
        segments_of(load_tokenizer(byte_tokenizer), what, nats)


@pytest.mark.parametrize("what", ["surprisal_nats", "entropy_nats"])
@pytest.mark.parametrize("nats", [math.inf, 3e38, 70_000.0, LARGEST_HALF])
def test_nats_too_large_to_hold_are_the_largest_that_are(byte_tokenizer: str, what: str, nats: float) -> None:
    [segment] = segments_of(load_tokenizer(byte_tokenizer), what, nats)
    assert getattr(segment, what)[2] == LARGEST_HALF and math.isfinite(segment.difficulty_nats)


@pytest.mark.parametrize(("vocab_size", "width"), [(65_535, 2), (65_536, 2), (65_537, 4)])
def test_the_last_id_of_a_vocabulary_comes_back(tmp_path: Path, vocab_size: int, width: int) -> None:
    ids = np.array([0, vocab_size - 1, vocab_size - 2], np.uint32 if width == 4 else np.uint16)
    nats = np.zeros(3, np.float16)
    segment = ScoredSegment(
        doc_id="d",
        segment_index=0,
        num_segments=1,
        token_start=0,
        input_ids=ids,
        surprisal_nats=nats,
        entropy_nats=nats,
        memory_nats=np.empty(0, np.float16),
        difficulty_nats=0.0,
    )
    storage.write_part(f"{tmp_path}/part.arrow", [segment], SEGMENTS.schema(vocab_size=vocab_size))
    [found] = storage.read_records(f"{tmp_path}/part.arrow", ScoredSegment)
    assert found.input_ids.tolist() == ids.tolist() and found.input_ids.dtype.itemsize == width


@pytest.mark.parametrize("vocab_size", [65_535, 65_536, 65_537])
def test_rows_of_such_a_vocabulary_come_back(tmp_path: Path, vocab_size: int) -> None:
    packed = write_output(str(tmp_path), vocab_size=vocab_size, documents=60)
    found = [row["input_ids"].tolist() for row in PackedDataset(packed.url)]
    assert found == [row.input_ids.tolist() for row in packed.rows("train")]
