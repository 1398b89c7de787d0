"""The budget: the histogram it is planned from, the arithmetic, the plan, and what is refused."""

import json
import pickle
from dataclasses import FrozenInstanceError
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from difficulty.budget.allocate import SPEND_TOLERANCE, allocate
from difficulty.budget.allocation import Allocation
from difficulty.budget.histogram import (
    LARGEST_NATS,
    MAX_BINS,
    DifficultyHistogram,
    KeyCounts,
    difficulty_key,
    difficulty_keys,
    difficulty_of_key,
    draws,
    hash_key,
    hash_keys,
)
from difficulty.budget.lagrange import solve, upper_hull
from difficulty.budget.tiers import HALF_RESOLUTION_TOKENS, BudgetConfig, ModelPrice, TierConfig
from sharding.errors import MillError, RequestError

SKIP = TierConfig(name="skip")
BRIEF = TierConfig(name="brief", model="small", prompt="brief", max_tokens=256)
LONG = TierConfig(name="long", model="small", prompt="feynman", max_tokens=1024)
DEEP = TierConfig(name="deep", model="large", prompt="feynman", max_tokens=4096, samples=4)
TIER_SETS = [(SKIP, BRIEF, DEEP), (SKIP, DEEP), (BRIEF, DEEP), (DEEP, SKIP, LONG, BRIEF)]
PRICES = {
    "small": ModelPrice(dollars_per_million_tokens=0.1, tokens_per_gpu_second=4000.0),
    "large": ModelPrice(dollars_per_million_tokens=2.0, tokens_per_gpu_second=500.0),
}

nats = st.one_of(
    st.floats(min_value=0, max_value=1e6),
    st.floats(min_value=0, max_value=LARGEST_NATS),
    st.sampled_from([0.0, 1.0, 37.5]),
)


def ids_of(num_segments: int) -> list[str]:
    return [f"doc{i // 4}#{i % 4}" for i in range(num_segments)]


def histogram_of(difficulty_nats) -> DifficultyHistogram:
    histogram = DifficultyHistogram()
    histogram.add_many(ids_of(len(difficulty_nats)), np.asarray(difficulty_nats, dtype=np.float64))
    return histogram


def heavy_tailed(num_segments: int, seed: int, kind: str = "lognormal") -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "lognormal":
        return rng.lognormal(4.0, 1.2, num_segments)
    if kind == "pareto":
        return 10 * (1 + rng.pareto(1.3, num_segments))
    # One in three without a hard token, one in three a copy of the same text.
    third = np.arange(num_segments) % 3
    return np.choose(third, [0.0, 80.0, 500 * rng.random(num_segments)])


def plan_at(difficulty_nats, tiers, position: float, policy="adaptive") -> Allocation:
    """A plan whose budget lies at `position` between the cheapest and the dearest possible."""
    costs = [tier.tokens_per_segment for tier in tiers]
    target = len(difficulty_nats) * (min(costs) + position * (max(costs) - min(costs)))
    config = BudgetConfig(policy=policy, thinking_tokens=max(1, round(target)), tiers=tiers)
    return allocate(histogram_of(difficulty_nats), config, source_tokens=1, prices={})


def spend_of(allocation: Allocation, tiers, difficulty_nats) -> float:
    chosen = allocation.tiers_of(ids_of(len(difficulty_nats)), difficulty_nats)
    return float(np.array([tier.tokens_per_segment for tier in tiers])[chosen].sum())


# --- histogram --------------------------------------------------------------------------------------------------------


@given(nats, nats)
def test_keys_order_like_difficulties(one, other):
    low, high = sorted((one, other))
    assert 0 <= difficulty_key(low) <= difficulty_key(high) < 1 << 31
    assert difficulty_of_key(difficulty_key(high)) <= high
    assert high < 1e-300 or difficulty_of_key(difficulty_key(high)) >= high * (1 - 1e-6)
    assert difficulty_keys(np.array([low, high])).tolist() == [difficulty_key(low), difficulty_key(high)]


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf"), LARGEST_NATS * 1.01])
def test_an_impossible_difficulty_is_refused(wrong):
    with pytest.raises(MillError, match="allowed: from 0"):
        DifficultyHistogram().add("a#0", wrong)
    with pytest.raises(MillError, match="allowed: from 0"):
        DifficultyHistogram().add_many(["a#0", "a#1"], np.array([1.0, wrong]))


def test_hashes_are_pinned():
    """A changed hash would move segments between tiers, and buy generations anew, on an upgrade."""
    assert [hash_key(i) for i in ("doc0#0", "doc0#1", "d\u00f6c#2")] == [2895441272, 2824484880, 2556095626]
    assert draws(["doc0#0"])[0] == 0.7717151585803038
    assert hash_keys(["doc0#0", "doc0#1"]).tolist() == [hash_key("doc0#0"), hash_key("doc0#1")]


def test_hashes_are_uniform_and_independent():
    ids = ids_of(20_000)
    keys, drawn = hash_keys(ids) / 2**32, draws(ids)
    for values in (keys, drawn):
        assert np.abs(np.histogram(values, bins=10, range=(0, 1))[0] / 2000 - 1).max() < 0.1
    assert abs(np.corrcoef(keys, drawn)[0, 1]) < 0.03


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_segments=st.sampled_from([0, 1, 7, MAX_BINS, MAX_BINS + 1, 5000]),
    num_parts=st.integers(1, 6),
    spread_nats=st.floats(0.01, 8.0),
)
def test_merging_is_independent_of_order_and_grouping(seed, num_segments, num_parts, spread_nats):
    rng = np.random.default_rng(seed)
    difficulty_nats = np.exp(spread_nats * rng.standard_normal(num_segments).clip(-5, 5))
    difficulty_nats[rng.random(num_segments) < 0.1] = 0.0
    ids = ids_of(num_segments)
    whole = histogram_of(difficulty_nats)

    parts = []
    for indices in np.array_split(rng.permutation(num_segments), num_parts):
        parts.append(DifficultyHistogram())
        parts[-1].add_many([ids[i] for i in indices], difficulty_nats[indices])
    left_to_right = reduce(DifficultyHistogram.merge, parts, DifficultyHistogram())
    right_to_left = reduce(lambda merged, part: part.merge(merged), reversed(parts))
    assert left_to_right == right_to_left == whole
    assert len(whole.by_difficulty.counts) <= MAX_BINS
    assert len(whole.by_hash.counts) <= MAX_BINS
    assert whole.num_segments == num_segments


def test_adding_one_by_one_is_adding_many():
    difficulty_nats = heavy_tailed(3000, seed=1)
    one_by_one = DifficultyHistogram()
    for segment_id, value in zip(ids_of(3000), difficulty_nats.tolist(), strict=True):
        one_by_one.add(segment_id, value)
    assert one_by_one == histogram_of(difficulty_nats)
    in_two = histogram_of(difficulty_nats[:2000])
    in_two.add_many(ids_of(3000)[2000:], difficulty_nats[2000:])
    assert in_two == one_by_one


def test_the_bins_are_no_wider_than_they_must_be():
    keys_of = difficulty_keys(heavy_tailed(5000, seed=2))
    found = histogram_of(heavy_tailed(5000, seed=2)).by_difficulty
    assert len(np.unique(keys_of >> found.shift)) <= MAX_BINS < len(np.unique(keys_of >> (found.shift - 1)))
    few = histogram_of(heavy_tailed(MAX_BINS, seed=2)).by_difficulty
    assert few.shift == 0


@pytest.mark.parametrize(
    ("keys", "shift", "num_bins"),
    [
        (range(MAX_BINS), 0, MAX_BINS),
        ([*range(0, 2 * MAX_BINS, 2), 1], 1, MAX_BINS),
        (range(MAX_BINS + 1), 1, MAX_BINS // 2 + 1),
        ([*range(0, 4 * MAX_BINS, 4), 2], 2, MAX_BINS),
        ([7] * 5000, 0, 1),
    ],
)
def test_bins_are_joined_in_pairs_as_little_as_needed(keys, shift, num_bins):
    counts = KeyCounts()
    for key in keys:
        counts.add(key)
    assert (counts.shift, len(counts.counts), sum(counts.counts.values())) == (shift, num_bins, len(keys))
    assert KeyCounts.from_json(counts.to_json()) == counts


def test_quantiles_and_mass_are_those_of_the_segments():
    difficulty_nats = heavy_tailed(50_000, seed=3)
    histogram = histogram_of(difficulty_nats)
    ranks = [0.01, 0.25, 0.5, 0.9, 0.999]
    np.testing.assert_allclose(
        histogram.quantiles(ranks), np.quantile(difficulty_nats, ranks, method="inverted_cdf"), rtol=0.016
    )
    assert histogram.total_nats == pytest.approx(difficulty_nats.sum(), rel=0.005)
    with pytest.raises(MillError, match="no segments"):
        DifficultyHistogram().quantiles([0.5])


@pytest.mark.parametrize("num_segments", [0, 3, MAX_BINS, 20_000])
def test_a_histogram_survives_json_and_stays_small(num_segments):
    histogram = histogram_of(heavy_tailed(num_segments, seed=4))
    text = json.dumps(histogram.to_json(), allow_nan=False)
    assert DifficultyHistogram.from_json(json.loads(text)) == histogram
    assert pickle.loads(pickle.dumps(histogram)) == histogram  # noqa: S301 - its own
    assert len(text) < 25_000


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.pop("by_hash"),
        lambda data: data["by_difficulty"].pop("shift"),
        lambda data: data["by_difficulty"]["counts"].append(1),
        lambda data: data["by_difficulty"].update(counts=["many"] * 5),
        lambda data: data["by_difficulty"]["counts"].__setitem__(0, 7),
    ],
)
def test_a_malformed_histogram_is_refused(damage):
    data = histogram_of([1.0, 2.0, 3.0, 4.0, 5.0]).to_json()
    damage(data)
    with pytest.raises(MillError, match="malformed"):
        DifficultyHistogram.from_json(data)


# --- tiers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": ""}, "at least 1 character"),
        ({"name": "t", "max_tokens": 64}, "max_tokens but no model"),
        ({"name": "t", "samples": 2}, "samples but no model"),
        ({"name": "t", "model": "m", "max_tokens": 64}, "no prompt"),
        ({"name": "t", "model": "m", "prompt": "p"}, "no max_tokens"),
        ({"name": "t", "model": "m", "prompt": "p", "max_tokens": 64, "min_tokens": 65}, "min_tokens 65 exceeds"),
        ({"name": "t", "model": "m", "prompt": "p", "max_tokens": 64, "expected_tokens": 65.0}, "not between"),
        (
            {"name": "t", "model": "m", "prompt": "p", "max_tokens": 64, "expected_resolution": 1.5},
            "less than or equal",
        ),
        ({"name": "t", "model": "m", "prompt": "p", "max_tokens": 0}, "greater than 0"),
        ({"name": "t", "cap": 3}, "cap"),
    ],
)
def test_an_impossible_tier_is_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        TierConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tiers": (SKIP, BRIEF)}, "but none is"),
        ({"tiers": (SKIP, BRIEF), "dollars": 1.0, "thinking_tokens": 1}, "thinking_tokens and dollars are set"),
        ({"tiers": (), "dollars": 1.0}, "at least 1 item"),
        ({"tiers": (SKIP,), "dollars": 1.0}, "no tier has a model"),
        ({"tiers": (BRIEF, BRIEF), "dollars": 1.0}, "names must differ"),
        ({"tiers": (SKIP, TierConfig(name="none"), BRIEF), "dollars": 1.0}, "more than one tier without"),
        ({"tiers": (SKIP, BRIEF), "dollars": 1.0, "policy": "fixed"}, "needs fixed_tier, one of skip, brief"),
        ({"tiers": (SKIP, BRIEF), "dollars": 1.0, "policy": "fixed", "fixed_tier": "x"}, "one of skip, brief; got x"),
        ({"tiers": (SKIP, BRIEF), "dollars": 1.0, "fixed_tier": "brief"}, "policy is adaptive"),
        ({"tiers": (SKIP, BRIEF), "dollars": -1.0}, "greater than 0"),
    ],
)
def test_an_impossible_budget_section_is_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        BudgetConfig(**fields)


@pytest.mark.parametrize(
    ("tier", "tokens", "dollars", "gpu_hours"),
    [
        (SKIP, 0, 0, 0),
        (BRIEF, 256, 256e-7, 256 / 4000 / 3600),
        (DEEP, 16384, 16384 * 2e-6, 16384 / 500 / 3600),
        (
            TierConfig(name="t", model="small", prompt="p", max_tokens=512, samples=2, expected_tokens=100.0),
            200,
            200e-7,
            200 / 4000 / 3600,
        ),
    ],
)
def test_costs(tier, tokens, dollars, gpu_hours):
    assert tier.cost("tokens", {}) == tokens
    assert tier.cost("dollars", PRICES) == pytest.approx(dollars)
    assert tier.cost("gpu_hours", PRICES) == pytest.approx(gpu_hours)


@pytest.mark.parametrize(
    ("unit", "key"),
    [("dollars", "models.small.dollars_per_million_tokens"), ("gpu_hours", "models.small.tokens_per_gpu_second")],
)
def test_a_missing_price_is_named(unit, key):
    config = BudgetConfig(**{unit: 1.0}, tiers=(SKIP, BRIEF))
    for prices in ({}, {"small": ModelPrice()}):
        with pytest.raises(RequestError, match=f"^{key}: not set"):
            allocate(histogram_of([1.0]), config, source_tokens=1, prices=prices)


def test_the_prior_is_concave_and_gives_way_to_measurement():
    tokens = [1, 64, 256, 1024, 4096, 16384, 65536]
    prior = [TierConfig(name="t", model="m", prompt="p", max_tokens=cap).resolution for cap in tokens]
    slopes = np.diff([0.0, *prior]) / np.diff([0, *tokens])
    assert (np.diff(slopes) < 0).all()
    assert (slopes > 0).all()
    assert prior[-1] < 1
    assert SKIP.resolution == 0
    half = TierConfig(name="t", model="m", prompt="p", max_tokens=int(HALF_RESOLUTION_TOKENS) // 4, samples=4)
    assert half.resolution == 0.5
    measured = TierConfig(name="t", model="m", prompt="p", max_tokens=64, expected_resolution=0.7)
    assert measured.resolution == 0.7


# --- arithmetic -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("costs", "resolutions", "hull"),
    [
        ([0, 1, 4], [0, 0.5, 0.8], [0, 1, 2]),
        ([4, 0, 1], [0.8, 0, 0.5], [1, 2, 0]),
        ([0, 1, 4], [0, 0.1, 0.8], [0, 2]),  # below the chord of its neighbours
        ([0, 1, 4], [0, 0.8, 0.5], [0, 1]),  # dearer and worse
        ([0, 1, 1], [0, 0.5, 0.6], [0, 2]),  # same price, worse
        ([0, 1, 1], [0, 0.5, 0.5], [0, 1]),  # twins: the first
        ([0, 1, 2], [0, 0.25, 0.5], [0, 1, 2]),  # on the chord
        ([3], [0.5], [0]),
        ([0, 1, 2, 3], [0, 0.1, 0.2, 0.9], [0, 3]),
    ],
)
def test_the_hull_holds_the_tiers_worth_choosing(costs, resolutions, hull):
    assert upper_hull(costs, resolutions) == hull


@pytest.mark.parametrize(
    ("counts", "target", "cuts", "split"),
    [
        # Tiers cost 0, 1, 4 and resolve 0, 0.5, 0.8 of 1, 2, 8 nats: steps worth .5, 1, 4 and .1, .2, .8 nats a unit.
        ([1, 1, 1], 0, (3, 3), None),
        ([1, 1, 1], 1, (2, 3), None),
        ([1, 1, 1], 5, (1, 2), None),
        ([1, 1, 1], 6, (0, 2), None),
        ([1, 1, 1], 12, (0, 0), None),
        ([1, 1, 1], 1.5, (2, 3), (0, 0.5)),
        ([1, 1, 1], 2, (1, 3), None),  # the second brief is worth 1 nat a unit, deep for the hardest .8
        ([1, 1, 1], 7.5, (0, 2), (1, 0.5)),
        # Half of ten deep thoughts is an unsteady end: ten brief ones for the easiest first, then a sixth.
        ([10, 10, 10], 35, (0, 3), (1, 1 / 6)),
    ],
)
def test_a_solution_by_hand(counts, target, cuts, split):
    counts = np.array(counts)
    plan = solve(counts, np.array([1.0, 2.0, 8.0]), np.array([0.0, 1.0, 4.0]), np.array([0.0, 0.5, 0.8]), target)
    assert plan.taken(counts) @ [0, 1, 4] == pytest.approx(target)
    assert plan.cuts == cuts
    assert plan.shared_step == (None if split is None else split[0])
    assert plan.share == pytest.approx(0 if split is None else split[1])
    if split is not None:
        drawn = np.random.default_rng(0).random((20_000, counts[plan.cuts[plan.shared_step] - 1])) < plan.share
        assert plan.deviation == pytest.approx(drawn.sum(axis=1).std() * [1, 3][plan.shared_step], rel=0.05)


def test_no_bin_takes_a_step_before_the_one_below():
    """8, 9 and 10 nats; the first step costs 300, the second 10 more, the budget is 400.

    The second bin can't have the first step (90 are left), so it may not have the second, though that would fit.
    """
    plan = solve(np.ones(3), np.array([8.0, 9.0, 10.0]), np.array([0.0, 300.0, 310.0]), np.array([0, 0.5, 0.51]), 400)
    assert (plan.cuts, plan.shared_step, plan.share) == ((2, 2), 0, pytest.approx(0.3))


def test_steady_spend_does_not_cost_the_one_hard_segment_its_thoughts():
    """One segment holds nearly all difficulty; brief thoughts for all others would be steady, and worth little."""
    counts, nats_each = np.ones(100), np.array([1.0] * 99 + [1000.0]) + np.arange(100) / 1000
    costs = np.array([tier.tokens_per_segment for tier in TIER_SETS[0]])
    resolutions = np.array([tier.resolution for tier in TIER_SETS[0]])
    plan = solve(counts, nats_each, costs, resolutions, 0.9 * DEEP.tokens_per_segment)
    assert (plan.cuts, plan.shared_step) == ((99, 100), 1)
    assert plan.share == pytest.approx((0.9 * 16384 - 256) / (16384 - 256))


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["lognormal", "pareto", "zeros and copies"]),
    tiers=st.sampled_from(TIER_SETS),
    position=st.floats(0.02, 0.999),
)
def test_no_allocation_resolves_much_more(seed, kind, tiers, position):
    """Against weak duality, which bounds every allocation of the budget: min over λ of Σ max(d·v - λ·c) + λ·B."""
    difficulty_nats = heavy_tailed(2000, seed, kind)
    plan = plan_at(difficulty_nats, tiers, position)
    costs = np.array([tier.tokens_per_segment for tier in tiers])
    values = np.array([tier.resolution for tier in tiers])
    prices = np.geomspace(1e-7, 10, 200) * difficulty_nats.max() / costs.max()
    gains = difficulty_nats[:, None] * values
    bound = min((gains - price * costs).max(axis=1).sum() + price * plan.planned_spend for price in prices)
    resolved = sum(tier.difficulty_nats * tier.resolution for tier in plan.tiers)
    # Copies fill whole bins, so steady spend costs more. 1% of slack for the bins' middles and the grid of λ.
    assert (0.95 if kind == "zeros and copies" else 0.98) * bound <= resolved <= 1.01 * bound


# --- plans ------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(
    num_segments=st.sampled_from([1, 10, 30, 100, 1000, 3000]),
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["lognormal", "pareto", "zeros and copies"]),
    tiers=st.sampled_from(TIER_SETS),
    position=st.floats(0.001, 1.0),
    policy=st.sampled_from(["adaptive", "uniform"]),
)
def test_the_budget_is_met(num_segments, seed, kind, tiers, position, policy):
    difficulty_nats = heavy_tailed(num_segments, seed, kind)
    plan = plan_at(difficulty_nats, tiers, position, policy)
    assert plan.planned_spend == pytest.approx(plan.target_spend, rel=SPEND_TOLERANCE)
    assert sum(tier.segments for tier in plan.tiers) == pytest.approx(num_segments)
    assert sum(tier.spend for tier in plan.tiers) == pytest.approx(plan.planned_spend)
    assert sum(tier.difficulty_nats for tier in plan.tiers) == pytest.approx(difficulty_nats.sum(), rel=0.02)
    assert plan.planned_tokens == pytest.approx(plan.planned_spend)
    # What the ids draw differs from the plan by the draws of the shared bin alone: six deviations, or one segment.
    dearest = max(tier.tokens_per_segment for tier in tiers)
    off = abs(spend_of(plan, tiers, difficulty_nats) - plan.planned_spend)
    if plan.shared_bin is None:
        assert plan.spend_deviation == 0
        assert off <= 1e-6 * plan.target_spend
    else:
        assert off <= 6 * plan.spend_deviation + dearest
    assert any("tip the budget" in warning for warning in plan.warnings) == (
        plan.spend_deviation > SPEND_TOLERANCE * plan.target_spend
    )


@pytest.mark.parametrize("policy", ["adaptive", "uniform"])
@pytest.mark.parametrize("kind", ["lognormal", "pareto", "zeros and copies"])
@pytest.mark.parametrize(
    ("tiers", "num_segments"), [(TIER_SETS[0], 1000), (TIER_SETS[0], 40_000), (TIER_SETS[1], 60_000)]
)
def test_what_the_plan_comes_to_is_within_one_percent(policy, kind, tiers, num_segments):
    difficulty_nats = heavy_tailed(num_segments, 7, kind)
    for position in (0.03, 0.3):
        plan = plan_at(difficulty_nats, tiers, position, policy)
        assert spend_of(plan, tiers, difficulty_nats) == pytest.approx(plan.target_spend, rel=SPEND_TOLERANCE)


@settings(deadline=None, max_examples=100)
@given(
    difficulty_nats=st.one_of(
        st.lists(nats, min_size=1, max_size=60).map(np.array),
        st.builds(heavy_tailed, st.just(4000), st.integers(0, 99), st.sampled_from(["lognormal", "zeros and copies"])),
    ),
    tiers=st.sampled_from(TIER_SETS),
    position=st.floats(0.001, 0.999),
)
def test_a_harder_segment_never_gets_a_lower_tier(difficulty_nats, tiers, position):
    plan = plan_at(difficulty_nats, tiers, position)
    costs = np.array([tier.tokens_per_segment for tier in tiers])
    chosen = costs[plan.tiers_of(ids_of(len(difficulty_nats)), difficulty_nats)]
    bins = difficulty_keys(difficulty_nats) >> plan.shift
    order = np.lexsort((chosen, bins))
    easier, harder = order[:-1], order[1:]
    assert (chosen[easier] <= chosen[harder]).all()  # bins ascend, and within a bin costs do
    mixed = {bin_ for bin_ in bins.tolist() if len(set(chosen[bins == bin_].tolist())) > 1}
    assert mixed <= ({plan.shared_bin.bin} if plan.shared_bin else set())
    # A cut point is where a tier begins.
    for i, from_nats in zip(plan.choices[1:], plan.cut_points_nats, strict=True):
        assert (difficulty_nats[chosen >= costs[i]] >= from_nats).all()


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_segments=st.sampled_from([1, 30, 3000]),
    tiers=st.sampled_from(TIER_SETS),
    position=st.floats(0.001, 0.999),
    policy=st.sampled_from(["adaptive", "uniform"]),
)
def test_a_plan_depends_on_the_segments_alone_and_travels(seed, num_segments, tiers, position, policy):
    difficulty_nats = heavy_tailed(num_segments, seed, "zeros and copies")
    plan = plan_at(difficulty_nats, tiers, position, policy)
    ids = ids_of(num_segments)
    shuffled = np.random.default_rng(seed).permutation(num_segments)
    reordered = DifficultyHistogram()
    for half in np.array_split(shuffled, 2):
        part = DifficultyHistogram()
        part.add_many([ids[i] for i in half], difficulty_nats[half])
        reordered = part.merge(reordered)
    config = BudgetConfig(policy=policy, thinking_tokens=round(plan.target_spend), tiers=tiers)
    assert allocate(reordered, config, source_tokens=1, prices={}) == plan

    by_json = Allocation.from_json(json.loads(json.dumps(plan.to_json(), allow_nan=False)))
    by_pickle = pickle.loads(pickle.dumps(plan))  # noqa: S301 - its own
    assert by_json == by_pickle == plan
    chosen = plan.tiers_of(ids, difficulty_nats).tolist()
    assert [by_json.tier_of(i, d) for i, d in zip(ids, difficulty_nats.tolist(), strict=True)] == chosen


def test_a_plan_does_not_change():
    plan = plan_at(heavy_tailed(30, 0), TIER_SETS[0], 0.3)
    with pytest.raises(FrozenInstanceError):
        plan.cuts = ()
    with pytest.raises(MillError, match="malformed"):
        Allocation.from_json({**plan.to_json(), "unheard": 1})
    with pytest.raises(MillError, match="malformed"):
        Allocation.from_json({})


def test_the_tiers_of_a_known_corpus():
    """By hand: a nat of difficulty makes the step to brief worth .5/100 nats a token, that to deep .3/300.

    Brief for 100, 40 and 30 nats (.5, .2, .15), deep for 100 (.1), brief for 10 (.05): 700 tokens, and no more.
    """
    brief = TierConfig(name="brief", model="m", prompt="p", max_tokens=100, expected_resolution=0.5)
    deep = TierConfig(name="deep", model="m", prompt="p", max_tokens=400, expected_resolution=0.8)
    difficulty_nats = np.array([30.0, 100.0, 0.0, 40.0, 10.0, 1.0])
    config = BudgetConfig(thinking_tokens=700, tiers=(SKIP, brief, deep))
    plan = allocate(histogram_of(difficulty_nats), config, source_tokens=1, prices={})
    assert plan.tiers_of(ids_of(6), difficulty_nats).tolist() == [1, 2, 0, 1, 1, 0]
    assert plan.planned_spend == plan.target_spend == 700
    assert plan.shared_bin is None
    assert plan.cut_points_nats == pytest.approx((10, 100), rel=1e-6)
    assert plan.marginal_nats == pytest.approx(0.05, rel=1e-6)
    assert [tier.segments for tier in plan.tiers] == [2, 3, 1]


def test_uniform_deals_the_adaptive_mix_by_lot():
    difficulty_nats = heavy_tailed(MAX_BINS, 5)
    adaptive, uniform = (plan_at(difficulty_nats, TIER_SETS[3], 0.1, policy) for policy in ("adaptive", "uniform"))
    assert [t.segments for t in uniform.tiers] == pytest.approx([t.segments for t in adaptive.tiers])
    ids = ids_of(MAX_BINS)
    chosen = uniform.tiers_of(ids, difficulty_nats)
    assert (chosen == uniform.tiers_of(ids, np.zeros(MAX_BINS))).all()
    spent = np.array([tier.tokens_per_segment for tier in TIER_SETS[3]])[chosen]
    assert abs(np.corrcoef(spent, difficulty_nats)[0, 1]) < 0.1
    resolved = [sum(t.difficulty_nats * t.resolution for t in plan.tiers) for plan in (adaptive, uniform)]
    assert resolved[0] > 1.3 * resolved[1]
    assert uniform.cut_points_nats == ()


def test_fixed_gives_one_tier_to_all():
    difficulty_nats = heavy_tailed(50, 6)
    config = BudgetConfig(policy="fixed", fixed_tier="brief", thinking_tokens=50 * 256, tiers=TIER_SETS[0])
    plan = allocate(histogram_of(difficulty_nats), config, source_tokens=1, prices={})
    assert plan.tiers_of(ids_of(50), difficulty_nats).tolist() == [1] * 50
    assert plan.tier_of("unseen#0", 3.0) == 1
    assert plan.planned_spend == 50 * 256
    assert plan.warnings == ()

    none = BudgetConfig(policy="fixed", fixed_tier="skip", thinking_tokens=50 * 256, tiers=(SKIP,))
    plan = allocate(histogram_of(difficulty_nats), none, source_tokens=1, prices={})
    assert plan.tiers_of(ids_of(50), difficulty_nats).tolist() == [0] * 50
    assert (plan.planned_spend, plan.warnings) == (0, ())

    rich = BudgetConfig(policy="fixed", fixed_tier="brief", thinking_tokens=100 * 256, tiers=TIER_SETS[0])
    (warning,) = allocate(histogram_of(difficulty_nats), rich, source_tokens=1, prices={}).warnings
    assert "spends 50.0% of budget.thinking_tokens" in warning

    poor = BudgetConfig(policy="fixed", fixed_tier="deep", thinking_tokens=50 * 256, tiers=TIER_SETS[0])
    with pytest.raises(RequestError, match=r"budget.thinking_tokens: 12800 is exceeded.*allowed: from 819200"):
        allocate(histogram_of(difficulty_nats), poor, source_tokens=1, prices={})


@pytest.mark.parametrize(
    ("budget", "tiers", "message"),
    [
        ({"thinking_tokens": 200_000}, TIER_SETS[0], "budget.thinking_tokens: 200000 .* from 0 to 163840"),
        ({"thinking_tokens": 2_000}, TIER_SETS[2], "budget.thinking_tokens: 2000 .* from 2560 to 163840"),
        (
            {"thinking_tokens_per_source_token": 40.0},
            TIER_SETS[0],
            r"budget.thinking_tokens_per_source_token: 40 .* from 0 to 32\b",
        ),
        ({"dollars": 1.0}, TIER_SETS[0], r"budget.dollars: 1 .* from 0 to 0\.32768"),
        ({"gpu_hours": 1.0}, TIER_SETS[0], r"budget.gpu_hours: 1 .* from 0 to 0\.0910222"),
    ],
)
@pytest.mark.parametrize("policy", ["adaptive", "uniform"])
def test_an_unreachable_budget_is_refused_with_the_range(budget, tiers, message, policy):
    config = BudgetConfig(policy=policy, tiers=tiers, **budget)
    with pytest.raises(RequestError, match=message):
        allocate(histogram_of(heavy_tailed(10, 8)), config, source_tokens=5120, prices=PRICES)


@pytest.mark.parametrize(("tokens", "tier"), [(163_840, 2), (164_800, 2), (163_000, None)])
def test_the_ends_of_the_range_are_reachable(tokens, tier):
    config = BudgetConfig(thinking_tokens=tokens, tiers=TIER_SETS[0])
    plan = allocate(histogram_of(heavy_tailed(10, 8)), config, source_tokens=1, prices={})
    assert plan.planned_spend == pytest.approx(tokens, rel=SPEND_TOLERANCE)
    if tier is not None:
        assert plan.tiers_of(ids_of(10), heavy_tailed(10, 8)).tolist() == [tier] * 10


@pytest.mark.parametrize("budget", [{"dollars": 0.5}, {"gpu_hours": 0.1}])
def test_a_budget_in_money_or_time_is_met_in_its_unit(budget):
    config = BudgetConfig(tiers=TIER_SETS[0], **budget)
    plan = allocate(histogram_of(heavy_tailed(900, 9)), config, source_tokens=1, prices=PRICES)
    (target,) = budget.values()
    assert plan.unit in budget
    assert plan.planned_spend == pytest.approx(target, rel=SPEND_TOLERANCE)
    for tier, planned in zip(TIER_SETS[0], plan.tiers, strict=True):
        assert planned.spend == pytest.approx(planned.segments * tier.cost(plan.unit, PRICES))
        assert planned.tokens == pytest.approx(planned.segments * tier.tokens_per_segment)


def test_a_tier_that_cannot_win_is_named():
    twin = TierConfig(name="twin", model="large", prompt="p", max_tokens=256)
    plan = plan_at(heavy_tailed(100, 10), (SKIP, BRIEF, twin, DEEP), 0.2)
    assert plan.tiers[2].segments == 0
    (warning,) = plan.warnings
    assert warning.startswith("tier twin gets nothing")
    assert "budget.tiers.2.expected_resolution" in warning


def test_spending_on_segments_without_difficulty_comes_last_and_is_said():
    difficulty_nats = np.array([0.0] * 50 + [5.0] * 50)
    half = plan_at(difficulty_nats, (SKIP, BRIEF), 0.5)
    assert half.tiers_of(ids_of(100), difficulty_nats).tolist() == [0] * 50 + [1] * 50
    assert half.warnings == ()
    more = plan_at(difficulty_nats, (SKIP, BRIEF), 0.9)
    assert any("40 segments without a hard token" in warning for warning in more.warnings)
    assert plan_at(difficulty_nats, (SKIP, BRIEF), 0.9, "uniform").warnings == ()


def test_an_empty_corpus_is_refused():
    config = BudgetConfig(thinking_tokens=1, tiers=TIER_SETS[0])
    with pytest.raises(MillError, match="no segments were scored"):
        allocate(DifficultyHistogram(), config, source_tokens=0, prices={})
