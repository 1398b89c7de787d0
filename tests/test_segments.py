"""Cutting documents: an exact partition under the cap, in valid text, at the best place near it."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from difficulty.segments import cut_segments


def by_length(text: str, *lengths: int) -> np.ndarray:
    """Token ends where tokens take `lengths` bytes in turn."""
    size = len(text.encode())
    ends = np.cumsum(np.resize(lengths, size))
    return np.unique(np.minimum(ends, size)).astype(np.int64)


def pieces(text: str, byte_ends: np.ndarray, cap: int) -> list[str]:
    """The segments' texts, after checking all that must hold of any cut."""
    data = text.encode()
    spans = cut_segments(byte_ends, data, cap)
    assert [start for start, _ in spans] == [0, *(end for _, end in spans[:-1])][: len(spans)]
    assert (spans[-1][1] if spans else 0) == len(byte_ends)
    assert all(0 < end - start <= cap for start, end in spans)
    if len(byte_ends) > cap:
        assert min(end - start for start, end in spans) >= cap // 4
    starts = np.concatenate([[0], byte_ends])
    texts = [data[starts[a] : starts[b]].decode() for a, b in spans]  # decode: raises inside a character
    assert "".join(texts) == text
    return texts


WORDS = st.sampled_from(
    ["word", "a", " ", "\n", "\n\n", ". ", "。", "日本語", "é", "e\u0301", "👩‍👩‍👧", "\t", "\r\n", "!"]
)


@given(
    st.lists(st.one_of(WORDS, st.text(max_size=5)), max_size=200).map("".join),
    st.lists(st.integers(1, 7), min_size=1, max_size=5),
    st.integers(16, 64),
)
def test_cuts_are_an_exact_partition_into_valid_text(text: str, lengths: list[int], cap: int) -> None:
    pieces(text, by_length(text, *lengths), cap)


FILL = "x" * 10

# A document of single-byte tokens with cap 40: the cut is wanted among positions 20 to 40.
CASES = {
    "paragraph before all": ("a" * 22 + "\n\n" + "b. c\nd e" + "f" * 60, 24),
    "paragraph with spaces in the blank line": ("a" * 22 + "\n \t\r\n" + "b\nc " + "d" * 60, 27),
    "paragraph, all blank lines before the cut": ("a" * 20 + "\n\n\n\n" + "b" * 80, 24),
    "latest paragraph": ("a" * 20 + "\n\n" + "b" * 6 + "\n\n" + "c" * 80, 30),
    "indentation goes with its line": ("a" * 22 + "\n    if b:" + "c" * 60, 23),
    "line before sentence": ("a" * 22 + "\n" + "b. c d" + "e" * 60, 23),
    "sentence before space": ("a" * 22 + ". b c" + "d" * 60, 24),
    "sentence with closing marks": ("a" * 22 + '?") b c' + "d" * 60, 26),
    "a stop inside a number is no sentence": ("a" * 22 + "1.5 c" + "d" * 60, 26),
    "space": ("a" * 30 + " " + "b" * 60, 31),
    "anywhere": ("a" * 100, 40),
    "Japanese sentence": ("字" * 8 + "。" + "字" * 30, 27),
    "Chinese question in quotes": ("字" * 7 + "？」" + "字" * 30, 27),
    "inside no character": ("字" * 40, 39),
    "too early to be taken": ("a\n\n" + "b" * 100, 40),
}


@pytest.mark.parametrize(("text", "first_cut"), CASES.values(), ids=CASES)
def test_where_the_first_cut_falls(text: str, first_cut: int) -> None:
    assert len(pieces(text, by_length(text, 1), 40)[0].encode()) == first_cut


def test_space_before_the_next_word_goes_with_it() -> None:
    """Vocabularies keep a word's space with the word, so the cut after a sentence is before the space."""
    text = "a" * 12 + ". The" + "c" * 60
    byte_ends = np.array([*range(1, 14), *range(17, len(text.encode()) + 1)])  # " The" is one token
    assert pieces(text, byte_ends, 16)[0] == "a" * 12 + "."


def test_the_last_segment_is_not_tiny() -> None:
    for size in range(41, 90):
        lengths = [len(piece) for piece in pieces("a" * size, by_length("a" * size, 1), 40)]
        assert len(lengths) == -(-size // 40)
        assert min(lengths) >= 10


def test_short_documents_stay_whole_and_empty_ones_have_none() -> None:
    assert cut_segments(np.empty(0, np.int64), b"", 16) == []
    assert cut_segments(np.arange(1, 17), b"a. b\n\nc " * 2, 16) == [(0, 16)]


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="at least 16"):
        cut_segments(np.array([1]), b"a", 15)
    with pytest.raises(ValueError, match="end at byte 2 of a text of 3 bytes"):
        cut_segments(np.array([1, 2]), b"abc", 16)


def test_five_megabytes_are_quick() -> None:
    text = ("A sentence of some words. Another one, longer than that!\nA line\n\n" * 90_000)[:5_000_000]
    byte_ends = by_length(text, 4, 3, 6)
    start = time.perf_counter()
    cut_segments(byte_ends, text.encode(), 512)
    assert time.perf_counter() - start < 3
