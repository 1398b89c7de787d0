"""The arithmetic of a verdict: interpolation, censoring, ratios, and the coverage of intervals."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.ablation.curves import Curve, Point
from pipelines.ablation.dose import fit, plateau
from pipelines.ablation.influence import correlation_interval, null_range, spearman
from pipelines.ablation.verdict import find, in_words, judge, paired_interval, ratio_of, resamples, tokens_to_target
from sharding.errors import MillError


@pytest.mark.parametrize(
    ("values", "target", "tokens"),
    [
        ([(0, 0.0), (100, 1.0)], 0.25, 25.0),
        ([(0, 0.0), (100, 1.0)], 1.0, 100.0),
        ([(0, 0.0), (100, 1.0)], 1.1, None),
        ([(0, 0.5), (100, 1.0)], 0.5, 0.0),
        ([(0, 0.0), (100, 0.6), (200, 0.4), (300, 0.8)], 0.5, 250 / 3),
        ([(0, -2.0), (100, -2.0), (200, -1.0)], -1.5, 150.0),
        ([], 0.0, None),
    ],
)
def test_tokens_to_a_target(values: list[tuple[int, float]], target: float, tokens: float | None) -> None:
    found = tokens_to_target(values, target)
    assert found == (None if tokens is None else pytest.approx(tokens))


def curve(arm: str, seed: int, *scores: float) -> Curve:
    points = [Point(tokens=100 * i, train_nats=None, scores={"x.y": score}) for i, score in enumerate(scores)]
    return Curve(
        arm=arm, seed=seed, output="o", identity="i", rows=1, sequence_length=10, parameters=1, points=points, done=True
    )  # fmt: skip


def test_the_target_is_what_the_baseline_has_at_its_end() -> None:
    found = judge(
        [curve("raw", 0, 0, 0.5, 1), curve("raw", 1, 0, 1, 2), curve("two", 0, 0, 1, 2), curve("two", 1, 0, 2, 4)],
        "x.y",
        None,
        "raw",
    )
    assert found.targets == {"0": 1.0, "1": 2.0}
    raw, two = found.reached
    assert raw.tokens == {"0": 200.0, "1": 200.0} and two.tokens == {"0": 100.0, "1": 100.0}
    [ratio] = found.ratios
    assert (ratio.arm, ratio.other, ratio.bound) == ("two", "raw", "")
    assert ratio.ratio == pytest.approx(2) == ratio.low == ratio.high
    assert in_words(ratio) == "2.00 (2.00 to 2.00)"


def test_all_pairs_are_there_and_the_way_round_is_free() -> None:
    arms = {"raw": 1.0, "a": 2.0, "b": 4.0}
    found = judge([curve(name, seed, 0, top) for name, top in arms.items() for seed in (0, 1)], "x.y", 1.0, "raw")
    assert [(one.arm, one.other) for one in found.ratios] == [("a", "raw"), ("b", "raw"), ("b", "a")]
    there, back = find(found.ratios, "b", "a"), find(found.ratios, "a", "b")
    assert (
        there is not None and back is not None and there.ratio == pytest.approx(2) and back.ratio == pytest.approx(0.5)
    )
    assert find(found.ratios, "a", "none") is None


def test_a_target_never_reached_gives_a_bound() -> None:
    never = ratio_of("a", "raw", [100.0, 100.0], [None, 300.0], trained=400)
    assert never.bound == "at least" and never.ratio == pytest.approx((4 * 3) ** 0.5) and never.high is None
    assert never.low is not None and never.low < never.ratio
    assert in_words(never).startswith("at least 3.46 (") and in_words(never).endswith("or more)")
    other = ratio_of("a", "raw", [None, 100.0], [300.0, 300.0], trained=400)
    assert other.bound == "at most" and other.low is None
    turned = find([other], "raw", "a")
    assert turned is not None and turned.bound == "at least" and turned.high is None
    for ours, theirs in (([None], [None]), ([None, 100.0], [100.0, None]), ([0.0], [100.0])):
        unknown = ratio_of("a", "raw", ours, theirs, trained=400)
        assert unknown.bound == "unknown" and unknown.ratio is None and in_words(unknown) == "can't be told"
    one = ratio_of("a", "raw", [100.0], [200.0], trained=400)
    assert (one.low, one.high) == (None, None) and "one seed" in in_words(one)


def test_a_score_that_is_not_there_is_named() -> None:
    with pytest.raises(MillError, match=r"ablation\.target\.metric: 'x\.z' is not one of the scores x\.y"):
        judge([curve("raw", 0, 0, 1)], "x.z", None, "raw")


def test_few_seeds_are_resampled_in_all_ways() -> None:
    weights = resamples(3, "k")
    assert weights.shape == (27, 3) and np.allclose(weights.sum(axis=1), 1) and np.allclose(weights.mean(axis=0), 1 / 3)
    assert resamples(8, "k").shape == (10_000, 8) and np.array_equal(resamples(8, "k"), resamples(8, "k"))


@pytest.mark.parametrize(("seeds", "trials", "least"), [(2, 600, 0.9), (3, 600, 0.9), (5, 200, 0.9)])
def test_intervals_cover_what_they_say(seeds: int, trials: int, least: float) -> None:
    """Nominally 95%; a plain percentile bootstrap of three covers 66%."""
    rng = np.random.default_rng(seeds)
    covered = 0
    for trial in range(trials):
        found = paired_interval(rng.normal(0.3, 0.1, seeds), f"{trial}")
        assert found is not None
        covered += found[0] <= 0.3 <= found[1]
    assert least <= covered / trials <= 0.99


def test_the_low_end_of_a_bound_covers_as_well() -> None:
    """Censored students pull a ratio down, so its low end is below the truth in at least 97.5%, noise aside."""
    rng = np.random.default_rng(0)
    below = trials = 0
    for _ in range(600):
        ours, theirs = np.exp(rng.normal(6, 0.1, 3)), np.exp(rng.normal(7, 0.1, 3))
        found = ratio_of("a", "b", ours.tolist(), [t if t < 1100 else None for t in theirs], 1100)
        if found.bound == "at least" and found.low is not None:
            trials += 1
            below += found.low <= np.exp(1)
    assert trials > 300 and below / trials >= 0.96


def test_where_more_no_longer_pays() -> None:
    doses = np.array([0.0, 0.25, 0.5, 1.0, 2.0])
    level = np.minimum(doses, 0.75)
    joint, slope = plateau(doses, 3 + 2 * level)
    assert joint == pytest.approx(0.75, abs=0.01) and slope == pytest.approx(2, rel=0.02)
    rises = fit("abcde", doses, np.stack([doses, doses + 0.1]))
    assert rises.monotone and rises.enough is None and rises.high is None
    nothing = fit("abcde", doses, np.zeros((3, 5)))
    assert nothing.enough == 0.0 and nothing.slope == 0.0
    falls = fit("abcde", doses, np.array([[0, 1, 2, 1.9, 1.8]] * 3))
    assert not falls.monotone and falls.enough is not None and falls.enough < 1


def test_the_interval_of_a_dose_covers_it() -> None:
    doses, rng = np.array([0.0, 0.25, 0.5, 1.0, 2.0]), np.random.default_rng(1)
    truth, covered, trials = 0.8, 0, 40
    for _ in range(trials):
        found = fit("abcde", doses, np.minimum(doses, truth) + rng.normal(0, 0.08, (5, 5)))
        covered += (found.low is None or found.low <= truth) and (found.high is None or truth <= found.high)
    assert covered / trials >= 0.8


def test_the_influence_of_nothing_is_nothing() -> None:
    """Coverage of the interval where the truth is 0, and that a true correlation is found."""
    rng, covered, trials = np.random.default_rng(2), 0, 12
    documents = [f"d{i // 2}" for i in range(80)]
    for _ in range(trials):
        low, high = correlation_interval(rng.normal(size=80), rng.normal(size=80), documents)
        assert low is not None and high is not None
        covered += low <= 0 <= high
    assert covered / trials >= 0.75
    gains = rng.normal(size=80)
    effects = gains + rng.normal(size=80)
    low, _ = correlation_interval(gains, effects, documents)
    assert low is not None and low > 0 and spearman(gains, effects) > null_range(gains, effects)[1]
    assert correlation_interval(gains[:4], effects[:4], documents[:4]) == (None, None)
    assert spearman(np.ones(5), np.arange(5.0)) == 0
