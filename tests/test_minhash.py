"""MinHash: signatures are pinned, resemblance is the Jaccard index, and near-copies meet as often as promised."""

from __future__ import annotations

import random

import numpy as np
import pytest

from sharding import minhash
from sharding.minhash import NUM_BANDS, RUN_WORDS, bands, resemblance, signature

PINNED = [4701898, 57895850, 251034, 196528233]
PINNED_BANDS = [10918523540524867950, 2365483534006184415]


def words(seed: int, count: int) -> list[str]:
    drawn = random.Random(seed)
    return [f"word{drawn.randrange(10_000)}" for _ in range(count)]


def changed(before: list[str], places: int, seed: int) -> list[str]:
    """With so many words replaced, far enough apart that each breaks `RUN_WORDS` runs."""
    after = list(before)
    for place in random.Random(seed).sample(range(RUN_WORDS, len(before) - RUN_WORDS, RUN_WORDS), places):
        after[place] = "changed"
    return after


def jaccard(one: list[str], other: list[str]) -> float:
    first, second = (
        {tuple(text[i : i + RUN_WORDS]) for i in range(len(text) - RUN_WORDS + 1)} for text in (one, other)
    )
    return len(first & second) / len(first | second)


def test_signatures_are_pinned() -> None:
    """A change reorders which near-copy of a corpus is kept."""
    found = signature(words(0, 40), 4)
    assert found.dtype == np.uint32 and found.tolist() == PINNED
    assert bands(found, 2) == PINNED_BANDS


@pytest.mark.parametrize("places", [0, 4, 12, 30])
def test_resemblance_is_the_jaccard_index(places: int) -> None:
    one = words(1, 400)
    other = changed(one, places, 2)
    found = resemblance(signature(one, 1024), signature(other, 1024))
    truth = jaccard(one, other)
    assert abs(found - truth) <= 4 * (truth * (1 - truth) / 1024) ** 0.5


def test_near_copies_meet_and_others_do_not() -> None:
    met = dict.fromkeys((3, 30), 0)
    for places in met:
        for number in range(100):
            one = words(number, 400)
            other = changed(one, places, number)
            met[places] += bool(set(bands(signature(one))) & set(bands(signature(other))))
    assert jaccard(words(0, 400), changed(words(0, 400), 3, 0)) > 0.9 and met[3] == 100
    # Of 0.45 on average: 1 - (1 - 0.45^8)^16 is 0.03.
    assert met[30] <= 15


def test_short_and_empty_texts() -> None:
    assert not np.array_equal(signature(["a"]), signature(["b"]))
    assert np.array_equal(signature(["a", "b"]), signature(["a", "b"]))
    assert set(signature([]).tolist()) == {2**32 - 1}
    assert not np.array_equal(signature(["a", "b"]), signature(["ab"]))


def test_a_long_text_is_taken_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    text = words(3, 500)
    whole = signature(text)
    monkeypatch.setattr(minhash, "_BATCH_RUNS", 7)
    assert np.array_equal(signature(text), whole)


def test_bands_divide_the_signature() -> None:
    found = signature(words(4, 30))
    assert len(bands(found)) == NUM_BANDS == len(set(bands(found)))
    assert len(set(bands(np.zeros(128, np.uint32)))) == NUM_BANDS, "equal contents of two bands are two numbers"
    with pytest.raises(ValueError, match="3 bands"):
        bands(found, 3)
