"""Runs whose budget is spent by expected gain: where it goes, on every runner, and what is refused before it costs."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from difficulty.budget.allocation import Allocation
from difficulty.gain.features import GROUPS, fit_features
from difficulty.gain.model import GainModel
from pipelines import report, yaml_config
from pipelines.arms import mill_arms
from pipelines.arms.kinds import arm_config
from pipelines.config import MillConfig
from pipelines.documents.inspect import Wanted, inspect
from pipelines.plan import make_plan, show
from pipelines.plan.learned import Learned, TierCost, read_learned, write_learned
from pipelines.run import mill
from pipelines.verify import verify
from pipelines.watch import status
from pipelines.yaml_config import from_mapping
from sharding import storage
from sharding.errors import RequestError
from sharding.records.types import Request, ScoredSegment
from sharding.storage import manifest
from sharding.storage.output import Output
from tests.conftest import rehearsal_tree

TWO = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")
GAINS = {"prose": 4.0, "tables": -3.0}


def tree_in(folder: Path, tokenizer: str, **budget: Any) -> dict[str, Any]:
    rng = random.Random(5)
    words = [f"word{i}" for i in range(400)]
    sources = []
    for name in GAINS:
        texts = [" ".join(rng.choices(words, k=rng.randrange(20, 120))) for _ in range(24)]
        if name == "tables":
            texts = [" ".join(str(rng.randrange(10**6)) for _ in range(len(text) // 8)) for text in texts]
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"id": f"{name}{i}", "text": t}) + "\n" for i, t in enumerate(texts)))
        sources.append({"name": name, "path": str(path), "id_field": "id"})
    tree = rehearsal_tree(folder, tokenizer, "", sources=sources)
    del tree["source"]
    tree["budget"] |= {"policy": "learned", **budget}
    tree["pack"] |= {"num_shards": 4}
    return tree


def segments_of(config: MillConfig) -> list[ScoredSegment]:
    scored = manifest.require(config.output, "score")
    urls = manifest.file_urls(config.output, scored, "segments")
    return [segment for url in urls for segment in storage.read_records(url, ScoredSegment)]


def teach(
    config: MillConfig, gains: Mapping[str, float], tokens: Mapping[str, float] | None = None, **said: Any
) -> None:
    """Leave a model by which a segment gains by its source alone, and the more the harder it is."""
    segments = segments_of(config)
    features = fit_features(segments)
    scale = {"brief": 1.0, "deep": 1.4}
    columns = len(features.groups)
    coefficients = np.zeros((len(scale), columns))
    for group, part in (("source", 1.0), ("source and difficulty", 0.3)):
        places = np.flatnonzero(features.groups == GROUPS.index(group))
        for place, source in zip(places, features.sources, strict=True):
            coefficients[:, place] = np.array(list(scale.values())) * part * gains[source]
    model = GainModel(
        tiers=tuple(scale),
        features=features,
        coefficients=coefficients,
        covariance=np.stack([0.01 * np.eye(columns, dtype=np.float32)] * len(scale)),
        prior=np.zeros(len(scale)),
        prior_variance=np.zeros(len(scale)),
        weight=1.0,
    )
    costs = {tier: TierCost(thought_tokens=n) for tier, n in (tokens or {}).items()}
    scored = manifest.require(config.output, "score")
    write_learned(config, scored, Learned(model=model, costs=costs, report=said, made_from={"segments": len(segments)}))


def allocation_in(output: str) -> Allocation:
    return Allocation.from_json(json.loads(Path(output, "difficulty.json").read_text())["allocation"])


def requests_of(output: str) -> list[Request]:
    augmented = manifest.require(output, "augment")
    urls = manifest.file_urls(output, augmented, "requests")
    return [request for url in urls for request in storage.read_records(url, Request)]


def part_bytes(output: str) -> dict[str, bytes]:
    found = sorted((Path(output) / "stages" / "augment").glob("requests-*.arrow"))
    found.append(Path(Output(output).steps))
    return {path.name: path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: str) -> MillConfig:
    config = from_mapping(tree_in(tmp_path_factory.mktemp("learned"), byte_tokenizer))
    mill(config, stages=["score"])
    teach(config, GAINS)
    return config


@pytest.fixture(scope="module")
def finished(taught: MillConfig) -> MillConfig:
    mill(taught)
    return taught


@pytest.fixture
def config(taught: MillConfig, tmp_path: Path) -> MillConfig:
    """The same run, scored and not taught, in a folder of its own."""
    return elsewhere(taught, tmp_path)


def elsewhere(taught: MillConfig, folder: Path, **budget: Any) -> MillConfig:
    shutil.copytree(Output(taught.output).stage("score"), folder / "out" / "stages" / "score")
    tree = yaml_config.to_mapping(taught)
    return from_mapping(tree | {"output": str(folder / "out"), "budget": tree["budget"] | budget})


def printed(what: Any) -> str:
    console = Console(width=300, file=io.StringIO())
    console.print(what)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_budget_goes_to_the_source_that_gains(finished: MillConfig) -> None:
    allocation = allocation_in(finished.output)
    of = {segment.segment_id: segment.source for segment in segments_of(finished)}
    spent = dict.fromkeys(GAINS, 0.0)
    costs = dict(zip((t.name for t in finished.budget.tiers), allocation.by_gain.costs, strict=True))  # type: ignore[union-attr]
    made = requests_of(finished.output)
    for request in made:
        spent[of[request.segment_id]] += costs[request.tier]
    total = sum(spent.values())
    assert spent["prose"] >= 0.95 * total > 0
    scored = manifest.require(finished.output, "score")
    target = finished.budget.target_spend(scored.counts["source_tokens"])
    assert allocation.planned_spend == pytest.approx(target, rel=0.01)
    assert abs(total - allocation.planned_spend) <= 5 * allocation.spend_deviation + 1e-6
    assert verify(finished.output, deep=True).problems == []


def test_what_was_promised_stands_in_the_manifest_the_card_and_the_report(finished: MillConfig) -> None:
    facts = manifest.require(finished.output, "augment").facts
    promised = facts["planned_gain_nats"]
    assert promised["low"] < promised["value"] < promised["high"] and promised["value"] > 0
    by_tier = {tier["name"]: tier["planned_gain_nats"]["value"] for tier in facts["tiers"]}
    assert by_tier["skip"] == 0 and sum(by_tier.values()) == pytest.approx(promised["value"])
    assert facts["marginal_gain_nats"] > 0
    card = Path(finished.output, "README.md").read_text()
    assert "spread learned" in card and "Expected gain" in card and "from these difficulties on" not in card
    page = Path(report.write(finished.output)).read_text()
    assert "Budget by expected gain" in page and "expected gain" in page
    assert status.read(finished.output)["complete"]


def test_a_segment_that_skips_is_found_by_its_tier(finished: MillConfig) -> None:
    shown = "".join(printed(part) for part in inspect(finished.output, Wanted(tier="skip"), plain=True))
    assert "skip" in shown
    documents = [s.doc_id for s in segments_of(finished) if s.source == "tables"]
    shown = "".join(printed(part) for part in inspect(finished.output, Wanted(doc_id=documents[0]), plain=True))
    assert "skip" in shown


def test_the_plan_says_what_the_run_does(taught: MillConfig, finished: MillConfig) -> None:
    plan = make_plan(taught)
    augmented = manifest.require(finished.output, "augment")
    for tier, fact in zip(plan["augment"]["tiers"], augmented.facts["tiers"], strict=True):
        assert tier["segments"]["value"] == pytest.approx(fact["planned_segments"])
        assert tier["expected_gain_nats"] == pytest.approx(fact["planned_gain_nats"])
    assert plan["budget"]["planned"] == pytest.approx(augmented.facts["planned_spend"])
    assert plan["budget"]["expected_gain_nats"] == pytest.approx(augmented.facts["planned_gain_nats"])
    assert "spread learned" in printed(show.render(plan)) and "expected gain in nats" in printed(show.render(plan))


@pytest.mark.slow
def test_two_processes_make_the_same(taught: MillConfig, finished: MillConfig, tmp_path: Path) -> None:
    config = elsewhere(taught, tmp_path)
    teach(config, GAINS)
    mill(config, stages=["augment"], beam_args=TWO)
    assert part_bytes(config.output) == part_bytes(finished.output)


def test_the_steps_are_counted_once(taught: MillConfig, finished: MillConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the corpus was looked at again")

    monkeypatch.setattr("pipelines.plan.corpus_steps.run_pipeline", refuse)
    make_plan(taught)
    Path(Output(taught.output).steps).write_text("{")
    with pytest.raises(AssertionError, match="looked at again"):
        make_plan(taught)
    monkeypatch.undo()
    make_plan(taught)


def test_without_a_model_nothing_is_bought(config: MillConfig) -> None:
    with pytest.raises(RequestError, match=r"no model of gain.*thoughtmill plan CONFIG --pilot \d+ --explore"):
        mill(config)
    assert manifest.read(config.output, "score") is not None
    assert not list(Path(config.output).glob("ledger/*"))
    with pytest.raises(RequestError, match=r"no model of gain.*--explore"):
        make_plan(config)
    teach(config, {"prose": -2.0, "tables": -2.0})
    with pytest.raises(RequestError, match="Don't buy"):
        mill(config)
    assert not list(Path(config.output).glob("ledger/*"))
    assert manifest.read(config.output, "augment") is None


@pytest.mark.slow
def test_a_run_begins_with_the_pilot_that_its_config_asks_for(taught: MillConfig, tmp_path: Path) -> None:
    """Score, pilot, learn, augment: made-up traces gain what noise gains, so the plan may well refuse to buy."""
    tree = yaml_config.to_mapping(elsewhere(taught, tmp_path, pilot_segments=24))
    config = from_mapping(tree | {"select": {"value": "continuation_gain"}})
    with contextlib.suppress(RequestError):
        mill(config, stages=["score", "augment"])
    learned = read_learned(config, manifest.require(config.output, "score"))
    assert set(learned.model.tiers) == {"brief", "deep"} and learned.made_from["segments"] > 0
    before = Path(Output(config.output).gain).read_bytes()
    with contextlib.suppress(RequestError):
        mill(config, stages=["augment"])
    assert Path(Output(config.output).gain).read_bytes() == before  # it is made once


def test_before_the_scores_a_plan_says_what_is_missing(tmp_path: Path, byte_tokenizer: str) -> None:
    with pytest.raises(RequestError, match=r"thoughtmill score CONFIG.*--explore"):
        make_plan(from_mapping(tree_in(tmp_path, byte_tokenizer)))


def test_another_model_is_another_input(config: MillConfig) -> None:
    teach(config, GAINS)
    first = mill(config, stages=["augment"])["augment"]
    assert mill(config, stages=["augment"])["augment"] == first
    teach(config, {"prose": -3.0, "tables": 4.0})
    with pytest.raises(RequestError, match=r"input gain: .* → .*--replace"):
        mill(config, stages=["augment"])
    assert manifest.require(config.output, "augment") == first
    right = Path(Output(config.output).gain).read_bytes()
    teach(config, {"prose": -2.0, "tables": -2.0})
    with pytest.raises(RequestError, match="Don't buy"):
        mill(config, stages=["augment"], replace=True)
    assert manifest.require(config.output, "augment") == first  # nothing is withdrawn for a plan that is refused
    Path(Output(config.output).gain).write_bytes(right)
    again = mill(config, stages=["augment"], replace=True)["augment"]
    assert again.inputs["gain"] != first.inputs["gain"]
    of = {segment.segment_id: segment.source for segment in segments_of(config)}
    assert {of[request.segment_id] for request in requests_of(config.output)} == {"tables"}


def test_tiers_are_as_long_as_the_pilot_found_them(config: MillConfig) -> None:
    teach(config, GAINS, {"brief": 24.0, "deep": 120.0})
    mill(config, stages=["augment"])
    by_gain = allocation_in(config.output).by_gain
    assert by_gain is not None and by_gain.costs == (0.0, 24.0, 120.0)
    said = manifest.require(config.output, "augment").config["budget"]["tiers"]
    assert [tier["expected_tokens"] for tier in said] == [None, None, None]


def test_a_budget_beyond_the_gain_stays_unspent(taught: MillConfig, tmp_path: Path) -> None:
    config = elsewhere(taught, tmp_path, thinking_tokens_per_source_token=3.0)
    teach(config, GAINS)
    made = mill(config, stages=["augment"])["augment"]
    assert made.facts["planned_spend"] < 0.9 * made.facts["target_spend"]
    assert any("the pilot expects no gain from more" in warning for warning in made.facts["warnings"])
    assert not any("rests to" in warning for warning in made.facts["warnings"])
    teach(config, GAINS, promises=False, weight=0.3)
    warnings = make_plan(config)["warnings"]
    assert any("rests to 70% on the prior" in warning for warning in warnings)


@pytest.mark.slow
def test_learned_is_an_arm_where_a_pilot_has_explored(taught: MillConfig, finished: MillConfig) -> None:
    results = mill_arms(taught, ["learned"])
    assert set(results) == {"raw", "learned"}
    arm = arm_config(taught, "learned").output
    assert {r.segment_id: r.tier for r in requests_of(arm)} == {
        r.segment_id: r.tier for r in requests_of(taught.output)
    }
    assert verify(arm, deep=True).problems == []


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"policy": "adaptive", "pilot_segments": 9}, "pilot_segments 9 is set, but policy is adaptive"),
        ({"pilot_segments": 0}, "greater than 0"),
    ],
)
def test_a_wrong_section_is_refused(tmp_path: Path, byte_tokenizer: str, budget: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        from_mapping(tree_in(tmp_path, byte_tokenizer, **budget))


def test_it_needs_a_scorer(tmp_path: Path, byte_tokenizer: str) -> None:
    tree = tree_in(tmp_path, byte_tokenizer)
    tree["difficulty"] = {"scorer": "none"}
    with pytest.raises(RequestError, match=r"learned needs a scorer.*name uniform or fixed"):
        from_mapping(tree)
