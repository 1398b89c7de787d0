"""Moving nats between tokenizations, difficulty mass and hard spans."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from difficulty.surprisal import HardSpan, align_nats, difficulty_nats, hard_spans
from sharding.models.tokenizer import TextTokenizer

SCRIPTS = [
    "The quick brown fox, 3.14!\n\n\tdef f(x): return x",
    "吾輩は猫である。名前はまだ無い。",
    "我能吞下玻璃而不伤身体。",
    "👩‍👩‍👧‍👦👍🏽🇯🇵",
    "e\u0301a\u0308\u0323 ก็ नमस्ते 한국어",
]
TEXTS = st.lists(st.one_of(st.sampled_from(SCRIPTS), st.text(max_size=12)), max_size=8).map("".join)


def trained_bpe(vocab_size: int, corpus: list[str]) -> TextTokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=vocab_size % 2 == 0)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    return TextTokenizer(tokenizer.to_str().encode(), name=f"bpe-{vocab_size}")


# Bytes, a BPE whose tokens end inside characters, and one that swallows several words.
TOKENIZERS = [trained_bpe(256, ["a"]), trained_bpe(300, [SCRIPTS[1], SCRIPTS[3]]), trained_bpe(401, SCRIPTS * 3)]


def character_ends(text: str) -> np.ndarray:
    return np.cumsum([len(char.encode()) for char in text], dtype=np.int64)


Cutter = Callable[[str], np.ndarray]
CUTTERS: list[Cutter] = [*(lambda text, t=t: t.byte_ends(t.encode(text)) for t in TOKENIZERS), character_ends]


def test_the_cutters_differ_inside_characters() -> None:
    text = "".join(SCRIPTS)
    ends = [set(cut(text).tolist()) for cut in CUTTERS]
    assert len({frozenset(e) for e in ends}) == 4
    assert ends[1] - ends[3], "no token of the second ends inside a character"


@given(TEXTS, st.sampled_from(CUTTERS), st.sampled_from(CUTTERS), st.integers(0, 2**32 - 1))
def test_total_nats_stay(text: str, source_cut: Cutter, target_cut: Cutter, seed: int) -> None:
    source, target = source_cut(text), target_cut(text)
    nats = np.random.default_rng(seed).weibull(0.6, len(source)).astype(np.float32)
    aligned = align_nats(source, nats, target)
    assert aligned.shape == target.shape
    assert (aligned >= 0).all()
    np.testing.assert_allclose(aligned.sum(), nats.astype(np.float64).sum(), rtol=1e-12, atol=1e-12)
    # Also up to every boundary that the two share, not only in total.
    _, in_source, in_target = np.intersect1d(source, target, return_indices=True)
    np.testing.assert_allclose(
        np.cumsum(aligned)[in_target], np.cumsum(nats.astype(np.float64))[in_source], rtol=1e-12, atol=1e-12
    )
    if np.array_equal(source, target):
        np.testing.assert_array_equal(aligned, nats)


@given(TEXTS, st.sampled_from(CUTTERS), st.integers(0, 2**32 - 1))
def test_to_bytes_and_back_changes_nothing(text: str, cut: Cutter, seed: int) -> None:
    source = cut(text)
    nats = np.random.default_rng(seed).exponential(2.0, len(source))
    every_byte = np.arange(1, len(text.encode()) + 1)
    np.testing.assert_allclose(align_nats(every_byte, align_nats(source, nats, every_byte), source), nats, atol=1e-9)


ALIGNED = {
    "one to many, by bytes": ([4], [8.0], [1, 4], [2.0, 6.0]),
    "many to one": ([1, 4], [2.0, 6.0], [4], [8.0]),
    "crossing": ([2, 4], [2.0, 4.0], [1, 3, 4], [1.0, 3.0, 2.0]),
    "equal": ([1, 3], [0.1, 0.2], [1, 3], [0.1, 0.2]),
    "target tokens without bytes": ([2, 4], [2.0, 4.0], [0, 2, 2, 4], [0.0, 2.0, 0.0, 4.0]),
    "source tokens without bytes": ([0, 2, 2, 4], [1.0, 2.0, 3.0, 4.0], [2, 4], [6.0, 4.0]),
    "equal, without bytes": ([2, 2], [1.0, 1.0], [2, 2], [2.0, 0.0]),
    "gains below zero": ([1, 2], [-1.0, 3.0], [2], [2.0]),
    "nothing": ([], [], [], []),
    "only tokens without bytes": ([0], [0.0], [0, 0], [0.0, 0.0]),
}


@pytest.mark.parametrize(("source", "nats", "target", "expected"), ALIGNED.values(), ids=ALIGNED)
def test_alignment(source: list[int], nats: list[float], target: list[int], expected: list[float]) -> None:
    aligned = align_nats(np.array(source, np.int64), np.array(nats), np.array(target, np.int64))
    np.testing.assert_allclose(aligned, expected, atol=1e-12)


def test_alignment_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="source tokens cover 2 bytes, target tokens 3"):
        align_nats(np.array([2]), np.array([1.0]), np.array([3]))
    with pytest.raises(ValueError, match="2 nats for 1 tokens"):
        align_nats(np.array([2]), np.array([1.0, 1.0]), np.array([2]))
    with pytest.raises(ValueError, match="no byte"):
        align_nats(np.array([0]), np.array([1.0]), np.array([], np.int64))


def test_difficulty_is_the_mass_above_the_threshold() -> None:
    assert difficulty_nats(np.array([0.5, 2.0, 3.5, 10.0]), 2.0) == 9.5
    assert difficulty_nats(np.array([1.0, 2.0], np.float16), 0.0) == 3.0
    assert difficulty_nats(np.empty(0), 2.0) == 0.0
    many = np.full(1_000_000, 2.1, np.float32)  # a float32 sum would be off in the fourth digit
    assert difficulty_nats(many, 2.0) == pytest.approx((np.float64(np.float32(2.1)) - 2.0) * 1e6, rel=1e-12)


def spans(nats: list[float], **limits: int) -> list[tuple[int, int, float]]:
    text = "x" * len(nats)
    found = hard_spans(text, np.arange(1, len(nats) + 1), np.array(nats), threshold_nats=1.0, **limits)
    assert all((s.char_start, s.char_end) == (s.token_start, s.token_end) for s in found)
    return [(s.token_start, s.token_end, s.nats) for s in found]


SPANS = {
    "none": ([1.0, 0.5], {}, []),
    "one": ([0, 3, 2, 0], {}, [(1, 3, 3.0)]),
    "at both ends": ([3, 0, 0, 0, 2], {}, [(0, 1, 2.0), (4, 5, 1.0)]),
    "merged over a gap": ([3, 0, 0, 2], {}, [(0, 4, 3.0)]),
    "gap too long": ([3, 0, 0, 2], {"max_gap_tokens": 1}, [(0, 1, 2.0), (3, 4, 1.0)]),
    "no merging": ([3, 0, 2], {"max_gap_tokens": 0}, [(0, 1, 2.0), (2, 3, 1.0)]),
    "heaviest, in order": ([2, 0, 9, 0, 3], {"max_gap_tokens": 0, "max_spans": 2}, [(2, 3, 8.0), (4, 5, 2.0)]),
    "first of equals": ([2, 0, 2, 0, 2], {"max_gap_tokens": 0, "max_spans": 2}, [(0, 1, 1.0), (2, 3, 1.0)]),
    "densest part": ([2, 2, 9, 9, 2], {"max_span_tokens": 2}, [(2, 4, 16.0)]),
    "all": ([2, 2, 2], {"max_span_tokens": 3}, [(0, 3, 3.0)]),
}


@pytest.mark.parametrize(("nats", "limits", "expected"), SPANS.values(), ids=SPANS)
def test_hard_spans(nats: list[float], limits: dict[str, int], expected: list[tuple[int, int, float]]) -> None:
    assert spans(nats, **limits) == expected


@given(TEXTS, st.sampled_from(CUTTERS), st.integers(0, 2**32 - 1), st.integers(0, 3), st.integers(1, 9))
def test_hard_spans_hold_whole_characters(text: str, cut: Cutter, seed: int, gap: int, longest: int) -> None:
    ends = cut(text)
    assume(len(ends))
    nats = np.random.default_rng(seed).exponential(2.0, len(ends))
    found = hard_spans(text, ends, nats, threshold_nats=2, max_gap_tokens=gap, max_span_tokens=longest, max_spans=3)
    assert len(found) <= 3
    assert bool(found) == bool((nats > 2).any())
    starts = np.concatenate([[0], ends[:-1]])
    previous_end = 0
    for span in found:
        assert previous_end <= span.token_start < span.token_end
        previous_end = span.token_end
        assert span.token_end - span.token_start <= longest
        assert span.nats == pytest.approx(difficulty_nats(nats[span.token_start : span.token_end], 2))
        before, upto = text[: span.char_start].encode(), text[: span.char_end].encode()
        first, last = int(starts[span.token_start]), int(ends[span.token_end - 1])
        assert len(before) <= first < len(before) + 4
        assert last <= len(upto) < last + 4


def test_offsets_of_a_span_inside_characters() -> None:
    found = hard_spans("a日b", np.array([2, 3, 5]), np.array([0.0, 5.0, 0.0]), threshold_nats=2.0)
    assert found == [HardSpan(token_start=1, token_end=2, char_start=1, char_end=2, nats=3.0)]
