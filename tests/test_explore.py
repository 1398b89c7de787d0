"""`thoughtmill plan --pilot N --explore`: what is tried, with which chance, and what it teaches."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from augment.ledger.reading import read_ledger
from augment.selection.config import SelectConfig
from augment.selection.controls import pools_of
from augment.selection.values.protocol import GainConfig
from augment.selection.valuing import Valuer
from benchmarks.built_in_gain import GAIN_NATS
from benchmarks.intervals import plan_config
from pipelines.augment import Augment
from pipelines.cli import app
from pipelines.config import MillConfig
from pipelines.joints import allocation_of
from pipelines.plan import chance, make_plan, show, strata
from pipelines.plan.corpus import scaled_histogram
from pipelines.plan.explore import gain_of
from pipelines.plan.explored import of_tier, run_gain
from pipelines.plan.frontier import frontier
from pipelines.plan.learned import read_gain, read_learned
from pipelines.plan.measured import MeasuredTier, Pilot, read_pilot
from pipelines.plan.pilot import tokens_per_second
from pipelines.run import mill
from pipelines.watch import status
from pipelines.yaml_config import from_mapping
from sharding.errors import RequestError
from sharding.records.types import LedgerRow, ScoredSegment
from sharding.storage import manifest
from tests.test_gain_null import Known
from tests.test_selection import candidate, judged

SEGMENTS = 60


@pytest.fixture
def tree(write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    kinds = ("A puzzle of {0} and {1}, which is {2}. ", "A table of {0} and {1}, that says {2}. ")
    source = write_jsonl(
        {"id": str(i), "text": kinds[i % 2].format(i, i * 7 % 31, i % 5) * (4 + i * i % 23)} for i in range(60)
    )
    tree = rehearsal_config(source)
    tree["select"] = {"value": "benchmarks.built_in_gain:BuiltInGain"}
    return tree


def scored(tree: dict[str, Any]) -> MillConfig:
    config = from_mapping(tree)
    mill(config, stages=["score"])
    return config


def segment(number: int, source: str, difficulty: float, length: int) -> ScoredSegment:
    nats = np.zeros(length, np.float16)
    return ScoredSegment(
        doc_id=str(number),
        segment_index=0,
        num_segments=1,
        token_start=0,
        input_ids=np.zeros(length, np.uint16),
        surprisal_nats=nats,
        entropy_nats=nats,
        memory_nats=nats[:0],
        difficulty_nats=difficulty,
        source=source,
    )


# --- what is tried ----------------------------------------------------------------------------------------------------


def test_every_stratum_is_drawn_from_with_a_known_chance() -> None:
    random = np.random.default_rng(1)
    segments = [
        segment(i, "web" if i % 20 else "books", float(random.lognormal(3, 1)), int(random.integers(8, 64)))
        for i in range(4000)
    ]
    places, chances = strata.draw(segments, 400)
    assert len(places) == 400 == len(set(places.tolist())) and ((chances > 0) & (chances <= 1)).all()
    # Weighted by the inverse of its chance the sample is the corpus: exactly in number, about in all else.
    for source, number in Counter(one.source for one in segments).items():
        own = np.array([segments[place].source == source for place in places])
        assert (1 / chances[own]).sum() == pytest.approx(number)
    difficulty = np.array([one.difficulty_nats for one in segments])
    estimate = difficulty[places] @ (1 / chances) / len(segments)
    assert estimate == pytest.approx(difficulty.mean(), rel=0.1)
    quintiles = np.searchsorted(np.quantile(difficulty, [0.2, 0.4, 0.6, 0.8]), difficulty[places])
    counts = np.bincount(quintiles)
    assert counts.min() > 25 and counts[4] > 2.5 * counts[0], "where budgets go more is tried"
    easier = np.array([one.difficulty_nats for one in segments]) < np.median(difficulty)
    assert easier[places] @ (1 / chances) / len(segments) == pytest.approx(0.5, abs=0.06)
    assert sum(segments[place].source == "books" for place in places) > 70, "a small source is heard"
    assert (strata.draw(segments, 400)[0] == places).all()


@pytest.mark.parametrize("count", [1, 3, 17, 60, 1000])
def test_small_samples_and_whole_corpora(count: int) -> None:
    segments = [segment(i, f"source {i % 3}", float(i % 7), 8) for i in range(60)]
    places, chances = strata.draw(segments, count)
    assert len(places) == min(count, 60)
    if count >= 60:
        assert (chances == 1).all()


def test_shares_are_by_the_square_root_and_within_what_is_there() -> None:
    assert strata.shares([10_000, 100], 110) == [100, 10]
    assert strata.shares([1000, 3, 1], 100) == [96, 3, 1]
    assert strata.shares([5, 5], 100) == [5, 5]
    assert strata.shares([9, 9, 9], 2, power=0.0) == [1, 1, 0]


def test_tiers_are_drawn_evenly() -> None:
    tried = Counter(name for i in range(3000) for name in strata.tiers_tried(f"{i}#0", ("a", "b", "c"), 2))
    assert sum(tried.values()) == 6000 and max(abs(number - 2000) for number in tried.values()) < 110


# --- what is measured -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("keep", ["first", "best", "best_above", "all"])
def test_where_no_trace_helps_exploring_finds_nothing(samples: int, keep: str) -> None:
    """The null of what is learned from, also of a threshold that looks at the noise of what it lets pass."""
    select = SelectConfig(value="continuation_gain", keep=keep, gain=GainConfig(controls=2))  # type: ignore[arg-type]
    config = _with_select(select)
    segments = [
        judged(
            f"page-{n}",
            *(candidate(sample, text=f"on page-{n} {sample}") for sample in range(samples)),
            text=f"So it says on page-{n}.",
        )
        for n in range(400)
    ]
    valuer = Valuer(select, Known(0.0), threshold_nats=2.0)
    [pool] = pools_of(segments, 64).values()
    gains = np.array([gain_of(config, valuer.valued(one, pool)) for one in segments], np.float64)
    assert abs(gains.mean()) < 2.6 * gains.std() / 20
    helped = Valuer(select, Known(3.0), threshold_nats=2.0)
    gains = np.array([gain_of(config, helped.valued(one, pool)) for one in segments], np.float64)
    assert gains.mean() > 2


def test_a_segment_whose_traces_all_fail_gains_nothing() -> None:
    config = _with_select(SelectConfig(value="continuation_gain"))
    rejected = judged("d", candidate(0, reasons=("loop",)), candidate(1, reasons=("loop",)))
    valuer = Valuer(config.select, Known(3.0), threshold_nats=2.0)
    assert gain_of(config, valuer.valued(rejected, ())) == 0.0
    passed = judged("d", candidate(0))
    assert gain_of(config, valuer.valued(passed, ())) is None, "without controls it can't be told"


def _with_select(select: SelectConfig) -> MillConfig:
    class Config:
        pass

    config = Config()
    config.select = select  # type: ignore[attr-defined]
    return config  # type: ignore[return-value]


def test_the_rate_is_of_the_time_in_which_something_was_generated() -> None:
    """A pilot that was interrupted for an hour was not slow for an hour."""

    def row(begin: float, end: float) -> LedgerRow:
        names = ("segment_id", "tier", "model", "revision", "engine", "engine_version", "prompt", "prompt_version")
        return LedgerRow(
            **dict.fromkeys((*names, "key", "request_key", "text", "finish_reason", "closed"), ""),
            sample=0,
            thought_tokens=100,
            token_ids=np.zeros(0, np.uint32),
            sum_logprobs=None,
            prompt_tokens=1,
            wall_s=end - begin,
            finished_at=end,
        )

    assert tokens_per_second([row(0, 10), row(5, 10), row(5, 20)]) == 300 / 20
    assert tokens_per_second([row(0, 10), row(3600, 3610)]) == 200 / 20
    assert tokens_per_second([row(0, 10)]) is None


# --- the frontier -----------------------------------------------------------------------------------------------------


def measured(nats: list[float], tokens: int) -> MeasuredTier:
    size = len(nats)
    once, names = (1,) * size, tuple(f"{i}#0" for i in range(size))
    return MeasuredTier(
        thought_tokens=(tokens,) * size,
        prompt_tokens=once,
        generations=once,
        accepted=once,
        cut=once,
        kept=once,
        kept_tokens=once,
        heldout_nats=tuple(nats),
        document=tuple(range(size)),
        segment=names,
        difficulty_nats=(1.0,) * size,
        weight=(2.0,) * size,
        gain_nats=tuple(nats),
        null_nats=(0.0, 1.0, -1.0, 0.0) * (size // 4),
        expected_nats=((1.0, 1.0, 1.0),) * size,
    )


def test_a_tier_that_gives_less_for_its_price_is_named(tree: dict[str, Any]) -> None:
    model = {"engine": "rehearsal", "name": "pretend"}
    tree["models"] = {"small": model, "large": model | {"name": "large"}}
    tier = {"prompt": "brief", "max_tokens": 64}
    tree["budget"]["tiers"] = [
        {"name": "skip"},
        {"name": "quick", "model": "small", **tier},
        {"name": "large", "model": "large", **tier},
        {"name": "worse", "model": "small", **tier},
    ]
    noise = np.random.default_rng(0).normal(0, 1, 40)
    pilot = Pilot(
        tiers={
            "quick": measured([*(2 + noise)], 20),
            "large": measured([*(3 + noise)], 30),
            "worse": measured([*(1 + noise)], 30),
        },
        tokens_per_second={"small": 100.0, "large": 10.0},
    )
    found = frontier(from_mapping(tree), pilot)
    assert found["unit"] == "gpu_hours", "tokens of two models are not one currency"
    quick, worse, large = found["tiers"]
    assert [row["name"] for row in found["tiers"]] == ["quick", "worse", "large"], "from the cheapest"
    assert (quick["gpu_seconds"], large["gpu_seconds"]) == (0.2, 3.0)
    assert quick["nats_per_1000_tokens"] == pytest.approx(1000 * quick["gain_nats"]["value"] / 20)
    assert not quick["is_dominated"] and not large["is_dominated"]
    assert worse["is_dominated"] and worse["dominated_by"] == ["quick", "large"] and worse["shown"]
    assert quick["gain_nats"]["low"] < 2 < quick["gain_nats"]["high"]
    assert quick["null_nats"]["low"] < 0 < quick["null_nats"]["high"]


def test_a_tier_that_gains_nothing_is_dominated_by_not_thinking(tree: dict[str, Any]) -> None:
    noise = np.random.default_rng(0).normal(0, 1, 40)
    for mean, shown in ((-0.02, False), (-3.0, True)):
        pilot = Pilot(tiers={"brief": measured([*(mean + noise - noise.mean())], 20)}, tokens_per_second={})
        [row] = frontier(from_mapping(tree), pilot)["tiers"]
        assert row["is_dominated"] and row["dominated_by"] == [] and row["shown"] is shown


def test_weights_count_as_that_many_segments() -> None:
    """A mean over numbers of unequal weight is that of as many numbers; and its interval covers."""
    random = np.random.default_rng(3)
    held = 0
    for _ in range(300):
        kind = random.random(80) < 0.5
        weights = np.where(kind, 9.0, 1.0)
        numbers = np.where(kind, 2.0, 0.0) + random.normal(0, 2, 80)
        interval = chance.mean(numbers, np.arange(80), random, weights)
        assert interval is not None
        found = chance.estimate(interval)
        held += found["low"] <= 1.8 <= found["high"]
    assert held / 300 > 0.86


def test_the_forecast_covers_what_the_run_measures() -> None:
    """Gains that grow with difficulty, alike within documents, under a plan that gives the hard ones the dear tier."""
    config, held, told, trials = plan_config(), Counter[str](), Counter[str](), 120
    budget = dataclasses.replace(config.budget, thinking_tokens_per_source_token=14.0)
    config = dataclasses.replace(config, budget=budget)
    for trial in range(trials):
        random = np.random.default_rng([7, trial])
        document_of = np.sort(random.integers(0, 300, 1200))
        difficulty = random.lognormal(3, 1, 1200)
        truth = 0.05 * difficulty + random.normal(0, 1, 300)[document_of]
        segments = [
            msgspec.structs.replace(segment(i, "", float(nats), 64), doc_id=f"{trial}-{i}")
            for i, nats in enumerate(difficulty)
        ]
        allocation = allocation_of(config, scaled_histogram(difficulty, np.ones(1200)), 1200 * 64)
        given = allocation.tiers_of([one.segment_id for one in segments], difficulty)
        places, chances = strata.draw(segments, 120)
        seen = (truth + random.normal(0, 3, 1200))[places]
        pilot = dataclasses.replace(
            measured([*seen], 20),
            segment=tuple(segments[place].segment_id for place in places),
            difficulty_nats=tuple(difficulty[places]),
            document=tuple(document_of[places].tolist()),
            weight=tuple(1 / chances),
        )
        for number, tier in enumerate(config.budget.tiers):
            own = given == number
            if tier.skips or not own.any():
                continue
            gain = run_gain(of_tier(pilot, allocation, number), float(own.sum()), random)
            if gain is None:
                continue  # fewer than eight of the explored segments are of this tier
            told[tier.name] += 1
            found, run = chance.estimate(gain), float((truth + random.normal(0, 3, 1200))[own].mean())
            held[tier.name] += found["low"] <= run <= found["high"]
    assert min(told.values()) > 0.9 * trials, told
    # Of 120 draws of a right 90% interval fewer than 102 hold 3 times in 100.
    assert all(held[name] >= 0.85 * number for name, number in told.items()), (held, told)


# --- the whole of it --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_exploring_pilot_teaches_and_the_run_buys_nothing_twice(
    tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = scored(tree)
    said: list[str] = []

    def interrupted(*args: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("pipelines.plan.learning.fit", interrupted)
        make_plan(config, pilot=SEGMENTS, explore=True, say=said.append)
    bought = {row.key for row in read_ledger(config.ledger_url)}
    assert "0 of them in the ledger already" in said[0] and "at most" in said[0]
    plan = make_plan(config, pilot=SEGMENTS, explore=True, say=said.append)
    assert "tokens per second (models.pretend.tokens_per_gpu_second is not set)" in said[1]
    assert f"{2 * SEGMENTS} of them in the ledger already; the others take about 0 thinking tokens" in said[2]
    rows = list(read_ledger(config.ledger_url))
    assert {row.key for row in rows} == bought and len(rows) == len(bought) == SEGMENTS * 3

    json.dumps(plan)
    brief, deep = plan["frontier"]["tiers"]
    assert (brief["name"], deep["name"]) == ("brief", "deep") and brief["segments"] == deep["segments"] == SEGMENTS
    for row in (brief, deep):
        assert row["gain_nats"]["low"] < GAIN_NATS[row["name"]] / 2 < row["gain_nats"]["high"]
        assert row["null_nats"]["low"] < 0.5 and row["null_nats"]["high"] > -0.5
    gains = plan["learned"]["made_from"]["gains"]
    assert 1.9 * SEGMENTS < gains <= 2 * SEGMENTS, "a few have controls with fewer traces than they have themselves"
    console = Console(width=300, file=io.StringIO())
    console.print(show.render(plan))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "nats/1,000 tokens" in text and f"from {gains} gains of {SEGMENTS} segments" in text
    tenths = text.partition("tenth by predicted gain")[2].splitlines()[1:11]
    report = plan["learned"]["report"]["deciles"]
    assert [f"{tenth['mean_nats']:+.2f} (" in line for tenth, line in zip(report, tenths, strict=True)] == [True] * 10
    again = make_plan(config)
    assert again["frontier"] == plan["frontier"] and again["learned"] == plan["learned"]
    pilot, notes = read_pilot(config, manifest.require(config.output, "score"))
    assert pilot is not None and pilot.explored and pilot.segments == SEGMENTS and not notes
    assert all(len(set(tier.segment)) == SEGMENTS for tier in pilot.tiers.values()), "each with every tier"

    under_way: list[dict[str, Any]] = []
    at_work = Augment.at_work

    @contextlib.contextmanager
    def looked_at(stage: Augment) -> Iterator[None]:
        with at_work(stage):
            under_way.append(status.read(config.output))
            yield

    monkeypatch.setattr(Augment, "at_work", looked_at)
    mill(config)
    [before], after = under_way, status.read(config.output)
    for found in (before, after):
        made = found["generation"]["thought_tokens"], found["beside"]["thought_tokens"]
        assert sum(made) == sum(row.thought_tokens for row in read_ledger(config.ledger_url)) - (
            0 if found is after else manifest.require(config.output, "augment").counts["thought_tokens_now"]
        )
    counts = manifest.require(config.output, "augment").counts
    assert before["generation"]["thought_tokens"] == counts["thought_tokens_found"], "what the plan asks for, no more"
    assert before["beside"] == after["beside"] and before["beside"]["generations"] == len(bought) - counts["found"]
    assert after["generation"]["thought_tokens"] == counts["thought_tokens"] < 1.2 * after["generation"]["budget"]
    augmented, selected = (manifest.require(config.output, stage) for stage in ("augment", "select"))
    assert 0 < augmented.counts["found"] <= len(bought)
    assert len({row.key for row in read_ledger(config.ledger_url)}) == len(list(read_ledger(config.ledger_url)))
    forecast = {tier["name"]: tier["gain_nats"] for tier in plan["augment"]["tiers"] if tier["gain_nats"]}
    untold = [warning for warning in plan["warnings"] if "can't tell what the traces of tier" in warning]
    assert len(forecast) + len(untold) == 2, "of a tier with few explored segments of its own the gain isn't told"
    for row in selected.facts["account"]:
        if row["tier"] not in forecast:
            continue
        value, wide = row["gains"]["heldout"]["mean"], forecast[row["tier"]]
        # One draw: tests/test_intervals.py's business is how often a 90% interval holds it.
        assert wide["low"] - (wide["high"] - wide["low"]) < value < wide["high"] + (wide["high"] - wide["low"])


def test_only_what_was_learned_with_this_config_is_read(tree: dict[str, Any]) -> None:
    config = scored(tree)
    score = manifest.require(config.output, "score")
    with pytest.raises(RequestError, match=r"holds no model of gain.*--explore"):
        read_gain(config, score)
    make_plan(config, pilot=24, explore=True, tries=1, say=lambda _: None)
    learned = read_learned(config, score)
    assert learned.made_from["tries"] == 24 >= learned.made_from["gains"], "each with one of the tiers"
    assert learned.costs["brief"].thought_tokens < learned.costs["deep"].thought_tokens <= 256
    assert learned.model.tiers == ("brief", "deep")
    fewer = {**tree, "budget": {**tree["budget"], "tiers": tree["budget"]["tiers"][:2]}}
    assert read_gain(from_mapping(fewer), score).digest == learned.model.digest, "a tier less needs no other pilot"
    spends = {**tree, "budget": {**tree["budget"], "thinking_tokens_per_source_token": 0.1}}
    assert read_gain(from_mapping(spends), score).digest == learned.model.digest
    longer = json.loads(json.dumps(tree))
    longer["budget"]["tiers"][1]["max_tokens"] = 64
    for section, change, names in (
        ("budget", longer["budget"], "tier brief differs"),
        ("sampling", {"temperature": 0.9}, "sampling differs"),
        ("select", {**tree["select"], "keep": "first"}, "select differs"),
    ):
        with pytest.raises(RequestError, match=rf"\({names}\).*--explore"):
            read_gain(from_mapping({**tree, section: change}), score)


def test_what_cannot_be_explored(tree: dict[str, Any]) -> None:
    skips = {"thinking_tokens": 1, "policy": "fixed", "fixed_tier": "skip", "tiers": [{"name": "skip"}]}
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({}, {"explore": True}, "plan --explore: tell how many segments"),
        ({}, {"tries": 2}, "plan --tries: is for a pilot that tries"),
        ({}, {"pilot": 20, "explore": True}, "the corpus isn't scored yet"),
        ({}, {"pilot": 20, "explore": True, "tries": 3}, "plan --tries: 3 of 2 tiers; allowed: 1 to 2"),
        (
            {"select": {"value": "none"}},
            {"pilot": 20, "explore": True},
            "tier brief and deep would have no value.*select.value",
        ),
        ({"select": {"value": "length"}}, {"pilot": 20, "explore": True}, "length measures no gain"),
        ({}, {"pilot": 2, "explore": True}, "select.gain.controls=2 others: raise --pilot"),
        ({"budget": skips}, {"pilot": 20, "explore": True}, "no tier with a model"),
    ]
    for number, (change, arguments, message) in enumerate(cases):
        if number == 3:
            scored(tree)
        with pytest.raises(RequestError, match=message):
            make_plan(from_mapping({**tree, **change}), say=lambda _: None, **arguments)
    assert not Path(from_mapping(tree).ledger_url).exists(), "nothing was bought"


def test_the_command_says_the_cost_beside_the_plan(tree: dict[str, Any], tmp_path: Path) -> None:
    scored(tree)
    tree["models"]["pretend"]["dollars_per_million_tokens"] = 2.0
    path = tmp_path / "mill.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    ran = CliRunner().invoke(app, ["plan", str(path), "--pilot", "16", "--explore", "--json"])
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout.strip().splitlines()[-1])["frontier"]["unit"] == "tokens"
    assert "explores 16 segments: 32 requests of 2 tiers" in ran.stderr and "dollars" in ran.stderr
