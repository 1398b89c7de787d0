"""A plan's 90% intervals hold the truth about as often as they say; benchmarks/intervals.py has the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from benchmarks import intervals
from pipelines.plan import chance
from pipelines.plan.evidence import gather
from pipelines.plan.pieces import PIECE_SEGMENTS, choose_pieces
from pipelines.yaml_config import from_mapping
from sharding.records.types import Document


@pytest.mark.parametrize("measured", intervals.MEASURED)
def test_the_interval_of_a_share_holds_it(measured: int) -> None:
    found = [intervals.share_coverage(measured, share) for share in intervals.SHARES]
    assert min(found) > 0.88
    if measured == 64:
        assert np.mean(found) < 0.95, "conservative only where counts are few"


def test_segments_of_a_document_that_are_alike_say_less() -> None:
    found = [intervals.share_coverage_in_documents(16, share, 60, 1) for share in (0.1, 0.5, 0.9)]
    assert min(found) > 0.85
    passed = np.array([1.0, 1, 1, 0, 0, 0])
    alone, together = np.arange(6), np.array([0, 0, 0, 1, 1, 1])
    assert chance.effective_number(passed, alone) > 4 > 1.5 > chance.effective_number(passed, together)
    assert chance.effective_number(np.ones(6), together) == 2, "all alike: a document is one"


@pytest.mark.parametrize("count", [0, 4])
def test_all_or_none_of_four_is_no_certainty(count: int) -> None:
    found = intervals._share_interval(count, 4)
    # 0.05 ** (1 / 4): what share of failures still gives none in four, one time in twenty.
    assert found["high"] - found["low"] == pytest.approx(1 - 0.05**0.25, abs=0.03)


@pytest.mark.parametrize("kind", intervals.LENGTHS)
def test_the_interval_of_tokens_holds_them(kind: str) -> None:
    for measured in (4, 16):
        held, _ = intervals.length_coverage(kind, measured, 60, 2)
        assert held > 0.88


@pytest.mark.slow
@pytest.mark.parametrize("kind", intervals.KINDS)
def test_tier_splits_of_a_sample_hold_those_of_the_corpus(kind: str) -> None:
    rows = list(intervals.split_intervals(intervals.plan_config(), kind, 64, 40, 5, num_documents=600))
    for name in ("skip", "brief", "deep", "segments", "tokens"):
        assert np.mean([row[name][0] for row in rows]) >= 0.8, name


def test_pieces_stand_for_all_in_proportion_to_size() -> None:
    rng = np.random.default_rng(1)
    lengths = np.minimum(rng.lognormal(7, 2, 400), 1e6).astype(int).tolist()
    totals = []
    for corpus in range(20):
        documents = [(Document(doc_id=f"{corpus} {i}", text="x" * n, origin=""), 0) for i, n in enumerate(lengths)]
        pieces, size = choose_pieces(documents, 64, 64)
        assert len(pieces) == 64 and max(piece.size for piece in pieces) <= PIECE_SEGMENTS
        assert max(len(piece.document.text) for piece in pieces) <= PIECE_SEGMENTS * 64 * 4
        totals.append(sum(piece.size / piece.chance for piece in pieces) / size)
    assert np.mean(totals) == pytest.approx(1, abs=0.1)
    again, _ = choose_pieces(documents, 64, 64)
    assert again == pieces
    whole, _ = choose_pieces(documents, 400, 64)
    assert [piece.document for piece in whole] == [document for document, _ in documents]
    assert {piece.chance for piece in whole} == {1.0}


def test_a_long_document_costs_a_plan_no_more_than_a_piece(
    write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]]
) -> None:
    texts = [f"A note of {i} words or so. " * 3 for i in range(80)] + ["A dump that goes on and on. " * 20_000]
    source = write_jsonl({"id": str(i), "text": text} for i, text in enumerate(texts))
    config = from_mapping(rehearsal_config(source))
    evidence = gather(config, 40)
    assert max(document.text_bytes for document in evidence.sample) <= PIECE_SEGMENTS * 64 * 4
    whole = gather(config, 1_000)
    assert whole.complete and not evidence.complete
    tokens, truth = (found.corpus(np.ones(len(found.sample))).source_tokens for found in (evidence, whole))
    assert tokens == pytest.approx(truth, rel=0.02)
