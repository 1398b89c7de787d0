"""Policy learned: the arithmetic over random gains, tiers, budgets and merges."""

from __future__ import annotations

import copy
import json
from functools import reduce
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difficulty.budget.allocation import Allocation
from difficulty.budget.histogram import MAX_BINS
from difficulty.budget.policies.learned import allocate
from difficulty.budget.steps import LARGEST_GAIN_NATS, GainSteps, climb
from difficulty.budget.tiers import BudgetConfig, TierConfig
from sharding.errors import MillError, RequestError

SKIP = TierConfig(name="skip")


def tier(name: str, tokens: int) -> TierConfig:
    return TierConfig(name=name, model="m", prompt="p", max_tokens=tokens)


SHORT, LONG, DEEP = tier("short", 100), tier("long", 400), tier("deep", 1500)
TIERS = [
    (SKIP, SHORT),
    (SKIP, SHORT, LONG, DEEP),
    (DEEP, SKIP, LONG, tier("other", 400), SHORT),
    (SHORT, LONG),
]


def ids_of(n: int) -> list[str]:
    return [f"doc{i // 3}#{i % 3}" for i in range(n)]


def gains_of(tiers: tuple[TierConfig, ...], n: int, seed: int, kind: str = "own") -> np.ndarray:
    """(n, tiers) expected gains: each tier its own, a few kinds of segment, or all in proportion to one difficulty."""
    rng = np.random.default_rng(seed)
    tokens = np.array([t.tokens_per_segment for t in tiers])
    scale = tokens / (tokens + 500)
    if kind == "own":
        gains = scale * rng.normal(1, 2, (n, len(tiers)))
    elif kind == "kinds":
        gains = scale * rng.normal(1, 2, (5, len(tiers)))[rng.integers(0, 5, n)]
    else:
        gains = scale * np.exp(rng.normal(0, 1, n))[:, None]
    return np.where(tokens > 0, gains, 0.0)


def steps_of(tiers: tuple[TierConfig, ...], gains: np.ndarray, parts: int = 1) -> GainSteps:
    steps = []
    for rows in np.array_split(np.arange(len(gains)), parts):
        steps.append(GainSteps([t.tokens_per_segment for t in tiers]))
        steps[-1].add(gains[rows], np.full((len(rows), len(tiers)), 0.5), np.ones(len(rows)))
    return reduce(GainSteps.merge, steps)


def plan_of(
    tiers: tuple[TierConfig, ...], gains: np.ndarray, tokens: float, steps: GainSteps | None = None
) -> Allocation:
    config = BudgetConfig(policy="learned", thinking_tokens=max(1, round(tokens)), tiers=tiers)
    return allocate(steps or steps_of(tiers, gains), config, source_tokens=1, model="digest")


def gaining_tokens(tiers: tuple[TierConfig, ...], gains: np.ndarray) -> tuple[float, float]:
    """What all segments cost before they take a step, and where all have taken every step that gains."""
    tokens = np.array([t.tokens_per_segment for t in tiers])
    found = climb(gains, tokens)
    last = found.base.copy()
    for reached in found.tiers.T:
        last = np.where(reached >= 0, reached, last)
    return float(tokens[found.base].sum()), float(tokens[last].sum())


Corpus = tuple[tuple[TierConfig, ...], int, int, str]

corpora = st.tuples(
    st.sampled_from(TIERS),
    st.sampled_from([1, 2, 7, 60, 900, 4000]),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["own", "kinds", "difficulty"]),
)


# --- steps ------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(corpora)
def test_a_segment_climbs_the_hull_that_any_price_would_choose_from(corpus: Corpus) -> None:
    tiers, n, seed, kind = corpus
    gains = gains_of(tiers, min(n, 60), seed, kind)
    costs = np.array([t.tokens_per_segment for t in tiers])
    found = climb(gains, costs)
    assert (np.diff(found.slopes, axis=1) <= 0).all()
    for price in np.random.default_rng(seed).exponential(0.003, 5):
        reached = found.base.copy()
        for step, slope in zip(found.tiers.T, found.slopes.T, strict=True):
            reached = np.where((step >= 0) & (slope > price), step, reached)
        rows = np.arange(len(gains))
        assert (gains - price * costs)[rows, reached] == pytest.approx((gains - price * costs).max(axis=1), abs=1e-9)


def test_steps_without_gain_are_none() -> None:
    gains = np.array([[0.0, -1.0, 2.0], [0.0, 0.0, 0.0], [0.0, 3.0, 2.9]])
    found = climb(gains, np.array([0.0, 10.0, 20.0]))
    assert found.base.tolist() == [0, 0, 0]
    assert found.tiers.tolist() == [[2], [-1], [1]]
    assert found.slopes.tolist() == [[0.1], [0.0], [0.3]]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf"), 2 * LARGEST_GAIN_NATS])
def test_an_impossible_gain_is_refused(wrong: float) -> None:
    with pytest.raises(MillError, match="expected gain of a segment"):
        GainSteps([0.0, 1.0]).add(np.array([[0.0, wrong]]), np.zeros((1, 2)), np.zeros(1))


@settings(deadline=None, max_examples=30)
@given(corpora, st.integers(1, 6))
def test_merging_is_independent_of_order_and_grouping(corpus: Corpus, num_parts: int) -> None:
    tiers, n, seed, kind = corpus
    gains = gains_of(tiers, n, seed, kind)
    whole = steps_of(tiers, gains)
    parts = []
    for rows in np.array_split(np.random.default_rng(seed).permutation(n), num_parts):
        part = GainSteps(whole.costs)
        for some in np.array_split(rows, 3):
            part.add(gains[some], np.full((len(some), len(tiers)), 0.5), np.ones(len(some)))
        parts.append(copy.deepcopy(part))
    left = reduce(GainSteps.merge, parts, GainSteps(whole.costs))
    right = reduce(lambda merged, part: part.merge(merged), reversed(parts))
    assert left == right == whole
    assert whole.num_segments == n
    assert len(whole.table().bin) <= MAX_BINS
    again = GainSteps.from_json(json.loads(json.dumps(whole.to_json())))
    assert again == whole


def test_the_state_stays_small() -> None:
    tiers = TIERS[2]
    steps = steps_of(tiers, gains_of(tiers, 60_000, 1), parts=7)
    assert len(steps.table().bin) <= MAX_BINS
    assert len(json.dumps(steps.to_json())) < 64_000


def test_other_costs_are_not_merged() -> None:
    with pytest.raises(MillError, match="other costs"):
        GainSteps([0.0, 1.0]).merge(GainSteps([0.0, 2.0]))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.pop("costs"),
        lambda data: data["count"].pop(),
        lambda data: data.update(shift=99),
        lambda data: data.update(bin_steps="x"),
        lambda data: data["bin_steps"].__setitem__(0, 1 << 50),
        lambda data: data["bin_steps"].__setitem__(1, -1),
    ],
)
def test_malformed_steps_are_refused(damage: Any) -> None:
    data = steps_of(TIERS[1], gains_of(TIERS[1], 50, 3)).to_json()
    damage(data)
    with pytest.raises(MillError, match="malformed"):
        GainSteps.from_json(data)


# --- the plan ---------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=80)
@given(corpora, st.floats(0, 1), st.integers(1, 4))
def test_the_budget_is_met_and_nothing_without_gain_is_bought(corpus: Corpus, position: float, parts: int) -> None:
    tiers, n, seed, kind = corpus
    gains = gains_of(tiers, n, seed, kind)
    low, high = gaining_tokens(tiers, gains)
    if high == 0:
        with pytest.raises(RequestError, match="Don't buy"):
            plan_of(tiers, gains, 10)
        return
    target = max(1, round(low + position * (high - low)))
    plan = plan_of(tiers, gains, target, steps_of(tiers, gains, parts))
    assert plan == plan_of(tiers, gains, target)
    assert plan.planned_spend == pytest.approx(target, rel=0.01, abs=1)
    tokens = np.array([t.tokens_per_segment for t in tiers])
    chosen = plan.tiers_by_gain(ids_of(n), gains)
    assert abs(tokens[chosen].sum() - target) <= 0.01 * target + 5 * plan.spend_deviation + 1
    base = climb(gains, tokens).base
    rows = np.arange(n)
    assert (gains[rows, chosen] >= gains[rows, base]).all()
    assert ((gains[rows, chosen] > gains[rows, base]) | (chosen == base)).all()
    # Each tier's segments and gains are those of the segments, but for what is drawn.
    if plan.shared_bin is None:
        assert [t.segments for t in plan.tiers] == np.bincount(chosen, minlength=len(tiers)).tolist()
        for i, planned in enumerate(plan.tiers):
            assert planned.gain_nats == pytest.approx(gains[chosen == i, i].sum(), abs=1e-5 * n)
            skips = 0.5 * (chosen == i).sum()
            assert planned.gain_deviation_nats == pytest.approx(skips, abs=1e-5 * n)


@settings(deadline=None, max_examples=40)
@given(corpora, st.floats(0.05, 0.95))
def test_no_plan_gains_much_more(corpus: Corpus, position: float) -> None:
    """Against the best for the same price: the Lagrangian bound at the plan's own marginal gain."""
    tiers, n, seed, kind = corpus
    gains = gains_of(tiers, n, seed, kind)
    low, high = gaining_tokens(tiers, gains)
    if n < 900 or high == 0:
        return
    plan = plan_of(tiers, gains, low + position * (high - low))
    costs = np.array([t.tokens_per_segment for t in tiers])
    bound = (gains - plan.marginal_nats * costs).max(axis=1).sum() + plan.marginal_nats * plan.planned_spend
    assert plan.gain_nats is not None
    assert plan.gain_nats <= bound * (1 + 1e-6) + 1e-3
    assert plan.gain_nats >= 0.98 * bound if bound > 0 else True


@settings(deadline=None, max_examples=30)
@given(corpora, st.floats(0, 1))
def test_a_plan_depends_on_the_segments_alone_and_travels(corpus: Corpus, position: float) -> None:
    tiers, n, seed, kind = corpus
    gains = gains_of(tiers, n, seed, kind)
    low, high = gaining_tokens(tiers, gains)
    if high == 0:
        return
    plan = plan_of(tiers, gains, low + position * (high - low))
    again = Allocation.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan
    ids = ids_of(n)
    chosen = copy.deepcopy(plan).tiers_by_gain(ids, gains)
    order = np.random.default_rng(seed).permutation(n)
    assert (again.tiers_by_gain([ids[i] for i in order], gains[order]) == chosen[order]).all()
    one = int(order[0])
    assert again.tiers_by_gain([ids[one]], gains[[one]]).tolist() == [chosen[one]]


@pytest.mark.parametrize("num_segments", [30_000])
def test_what_the_plan_comes_to_is_within_one_percent(num_segments: int) -> None:
    tiers = TIERS[1]
    costs = np.array([t.tokens_per_segment for t in tiers])
    for seed, kind in enumerate(("own", "kinds", "difficulty")):
        gains = gains_of(tiers, num_segments, seed, kind)
        low, high = gaining_tokens(tiers, gains)
        for position in (0.1, 0.4, 0.9):
            target = low + position * (high - low)
            chosen = plan_of(tiers, gains, target).tiers_by_gain(ids_of(num_segments), gains)
            assert costs[chosen].sum() == pytest.approx(target, rel=0.01)


def test_a_plan_by_hand() -> None:
    gains = np.array([[0.0, 1.0, 1.2], [0.0, 0.5, 3.0], [0.0, -1.0, -2.0], [0.0, 0.1, 0.1]])
    plan = plan_of((SKIP, SHORT, LONG), gains, 500)
    assert plan.tiers_by_gain(ids_of(4), gains).tolist() == [1, 2, 0, 0]
    assert [t.segments for t in plan.tiers] == [2, 1, 1]
    assert [t.gain_nats for t in plan.tiers] == [0, 1, 3]
    assert plan.gain_nats == 4
    assert plan.marginal_nats == pytest.approx(0.0075, rel=1e-6)
    assert plan.cut_points_nats == ()
    assert plan.warnings == ()


def test_a_budget_beyond_the_gain_stays_unspent_and_is_said() -> None:
    gains = np.zeros((100, 2))
    gains[:20, 1] = 2.0
    plan = plan_of((SKIP, SHORT), gains, 8_000)
    assert plan.planned_spend == 2_000
    assert plan.tiers_by_gain(ids_of(100), gains).sum() == 20
    assert plan.warnings == (
        "the pilot expects no gain from more: 75.0% of budget.thinking_tokens stays unspent; policy adaptive would "
        "spend it",
    )


def test_no_gain_at_all_is_refused() -> None:
    with pytest.raises(RequestError, match=r"buys nothing.*short, long.*Don't buy.*--explore.*policy adaptive"):
        plan_of((SKIP, SHORT, LONG), -np.ones((9, 3)), 300)


def test_a_budget_that_no_policy_could_meet_is_refused() -> None:
    gains = gains_of((SHORT, LONG), 10, 1)
    with pytest.raises(RequestError, match=r"budget.thinking_tokens: 900 .*10 segments.*allowed: from 1000 to 4000"):
        plan_of((SHORT, LONG), gains, 900)
    with pytest.raises(RequestError, match="allowed: from 1000 to 4000"):
        plan_of((SHORT, LONG), gains, 4_100)


def test_a_tier_that_all_pay_for_without_gain_is_named() -> None:
    plan = plan_of((SHORT, LONG), -np.ones((10, 2)), 1_000)
    assert plan.planned_spend == 1_000
    assert any("tier short is paid for without an expected gain" in warning for warning in plan.warnings)


def test_an_empty_corpus_is_refused() -> None:
    with pytest.raises(MillError, match="no segments"):
        plan_of((SKIP, SHORT), np.zeros((0, 2)), 10)


def test_a_plan_says_by_what_it_decides() -> None:
    gains = gains_of(TIERS[1], 50, 1)
    plan = plan_of(TIERS[1], gains, 2_000)
    with pytest.raises(MillError, match="expected gains"):
        plan.tier_of("a#0", 3.0)


@pytest.mark.parametrize(
    "damage",
    [
        {"by_gain": None},
        {"axis": "difficulty"},
        {"cuts": []},
        {"by_gain": {"model": "x", "costs": [0.0], "steps": []}},
        {"by_gain": {"model": "x", "costs": [0.0, 1.0, 2.0], "steps": [[0, 7]]}},
    ],
)
def test_a_malformed_plan_is_refused(damage: Any) -> None:
    plan = plan_of((SKIP, SHORT, LONG), gains_of((SKIP, SHORT, LONG), 30, 1), 2_000)
    with pytest.raises(MillError, match="malformed"):
        Allocation.from_json(plan.to_json() | damage)
