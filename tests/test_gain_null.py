"""The gain's null and the coverage of its intervals: what selection says where the truth is known."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from augment.selection.account import account_counts, split_account
from augment.selection.chance import chance_of
from augment.selection.config import SelectConfig
from augment.selection.controls import pools_of
from augment.selection.keeping import choose
from augment.selection.values.protocol import GainConfig, Valuation
from augment.selection.valuing import TOO_FEW_CONTROLS, Valuer
from sharding.hashing import text_number
from sharding.intervals import mean_of_segments
from tests.test_selection import candidate, judged

TOKENS = 96


class Known:
    """A scorer under which a trace gains so many nats on its own segment's text, and chance the rest.

    Chance is as it was measured: the two halves of a text correlate at 0.65, since a trace of the text's style or topic
    lifts all of its tokens.
    """

    def __init__(self, gain_nats: float) -> None:
        self.gain_nats, self.rows = gain_nats, 0

    def __call__(self, prefixes: Sequence[str], text: str, skipped: int, size: int) -> tuple[np.ndarray, int]:
        del skipped, size
        self.rows += len(prefixes)
        return np.stack([self._nats(prefix, text) for prefix in prefixes]), 0

    def _nats(self, prefix: str, text: str) -> np.ndarray:
        if not prefix:
            return np.full(TOKENS, 3.0, np.float32)
        random = np.random.default_rng(text_number(f"{prefix} before {text}"))
        own = self.gain_nats if f"{prefix.rpartition(' ')[0]}." in text else 0.0
        gains = random.normal(0, 0.04) + random.normal(0, 0.21, TOKENS) + own / TOKENS
        return (3.0 - gains).astype(np.float32)


def account(documents: int, samples: int, gain_nats: float = 0.0, **config: Any) -> tuple[dict[str, Any], Known]:
    select = SelectConfig(value="continuation_gain", gain=GainConfig(controls=2), **config)
    segments = [
        judged(
            f"page-{n}",
            *(candidate(sample, text=f"on page-{n} {sample}") for sample in range(samples)),
            text=f"So it says on page-{n}.",
        )
        for n in range(documents)
    ]
    scorer = Known(gain_nats)
    valuer = Valuer(select, scorer, threshold_nats=2.0)
    [pool] = pools_of(segments, 64).values()
    totals: Counter[str] = Counter()
    for segment in segments:
        valued = valuer.valued(segment, pool)
        totals.update(account_counts(choose(valued.candidates, select), valued))
    [row] = split_account(totals)[1]
    return row, scorer


@pytest.mark.parametrize("samples", [1, 2, 4])
@pytest.mark.parametrize("keep", ["best", "sample", "first", "all"])
def test_where_no_trace_helps_no_gain_is_found(samples: int, keep: str) -> None:
    row, scorer = account(500, samples, keep=keep)
    assert scorer.rows == 500 * (1 + 3 * samples), "every row is read once"
    for what in ("heldout_first", "heldout", "heldout_choice", "null_first", "null"):
        found = row["gains"][what]
        half = (found["interval95"][1] - found["interval95"][0]) / 2
        assert abs(found["mean"]) <= 1.5 * half, (what, found)
        assert half < 1, (what, found)


def test_choosing_without_its_null_promises_gains_that_are_not_there() -> None:
    """What the tests above would miss: the best of four, on tokens that it was not chosen by, is above the controls."""
    select = SelectConfig()
    random = np.random.default_rng(1)
    naive, net = [], []
    for _ in range(400):
        halves = random.normal(0, 4, (12, 1)) + random.normal(0, 3, (12, 2))
        values = [Valuation(value=v, heldout_nats=h, gain_nats=v + h, control_nats=0.0) for v, h in halves]
        best = max(values[:4], key=lambda one: one.value or 0.0)
        chance = chance_of([values[4:8], values[8:]], 4, select)
        assert best.heldout_nats is not None and chance.heldout_nats is not None
        naive.append(best.heldout_nats)
        net.append(best.heldout_nats - chance.heldout_nats)
    assert np.mean(naive) > 2.5
    assert abs(np.mean(net)) < 3 * np.std(net) / 20


def test_a_gain_that_is_there_is_found() -> None:
    gains = account(500, 4, gain_nats=2.0)[0]["gains"]
    low, high = gains["heldout_first"]["interval95"]
    assert low < 2.0 < high and high - low < 1
    assert abs(gains["null_first"]["mean"]) < 0.5


@pytest.mark.parametrize("documents", [1, 2])
def test_with_too_few_documents_for_controls_there_is_no_value_and_it_says_why(documents: int) -> None:
    segments = [judged(f"d{n}", candidate(0), candidate(1)) for n in range(documents)]
    valuer = Valuer(SelectConfig(), Known(0.0), threshold_nats=2.0)
    [pool] = pools_of(segments, 64).values()
    for segment in segments:
        found = valuer.valued(segment, pool)
        assert {(c.value, c.unvalued) for c in found.candidates} == {(None, TOO_FEW_CONTROLS)}
        plain, [row] = split_account(account_counts(choose(found.candidates, SelectConfig()), found))
        assert plain["unvalued.too_few_controls"] == 2 and "gains" not in row


def test_chance_looks_at_as_many_traces_as_there_are_candidates() -> None:
    def control(*values: float) -> list[Valuation]:
        return [Valuation(value=v, heldout_nats=10 * v, gain_nats=v + 1, control_nats=1.0) for v in values]

    best = SelectConfig()
    assert chance_of([control(1, 2, 3), control(4, 0)], 2, best).value == 3.0  # of 1, 2 and of 4, 0
    assert chance_of([control(1, 2, 3), control(4)], 2, best).heldout_nats == 20.0  # the second has too few
    assert chance_of([control(4)], 2, best).value is None
    assert chance_of([control(1, 2), control(4, 0)], 2, best).null_choice_nats == -15.0
    assert chance_of([control(1, 2), control(4, 0)], 2, SelectConfig(keep="all")).value == 1.75
    # Nothing of the segment could be valued: nothing was chosen.
    assert chance_of([control(1, 2), control(3)], 0, best).heldout_nats is None
    one_token = [Valuation(value=1.0, gain_nats=1.0, control_nats=0.0)] * 2
    assert chance_of([one_token, one_token], 2, best).heldout_nats is None
    unread = Valuation(value=None, unvalued="too_long")
    assert chance_of([[unread, *control(5)], control(3)], 1, best).value == 4.0


@pytest.mark.parametrize("documents", [5, 10, 30])
@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_intervals_cover_what_they_promise(documents: int, correlation: float) -> None:
    random = np.random.default_rng(documents)
    rounds, covered = 1000, 0
    for _ in range(rounds):
        segments = 1 + random.geometric(0.25, documents).clip(max=29)
        of_document = np.repeat(np.arange(documents), segments)
        nats = np.sqrt(correlation) * random.normal(size=documents)[of_document]
        nats += np.sqrt(1 - correlation) * random.normal(size=len(of_document))
        found = mean_of_segments(segments, np.bincount(of_document, 1 + 5 * nats), fewest=2)
        assert found.low is not None and found.high is not None
        covered += found.low <= 1 <= found.high
    assert 0.93 <= covered / rounds <= 0.97


def test_of_few_documents_there_is_no_interval() -> None:
    found = mean_of_segments(np.array([3, 0, 4]), np.array([3.0, 0.0, 4.0]))
    assert (found.mean, found.low, found.segments, found.documents) == (1.0, None, 7, 2)


def test_of_no_segment_there_is_no_mean_and_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for sizes in (np.zeros(0), np.zeros(9)):
            found = mean_of_segments(sizes, sizes)
            assert np.isnan(found.mean) and (found.low, found.high, found.segments, found.documents) == (
                None,
                None,
                0,
                0,
            )
