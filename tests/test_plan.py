"""`thoughtmill plan`: what it says follows from the scored parts or a sample, and a pilot measures the rest."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from augment.ledger.reading import read_ledger
from difficulty.budget.histogram import DifficultyHistogram
from pipelines.cli import summary
from pipelines.config import MillConfig
from pipelines.plan import make_plan, show
from pipelines.plan.chance import estimate
from pipelines.plan.corpus import scaled_histogram
from pipelines.plan.evidence import gather
from pipelines.plan.forecast import TierForecast, forecast
from pipelines.plan.measured import MeasuredTier, Pilot, read_pilot
from pipelines.run import mill
from pipelines.yaml_config import from_mapping
from sharding.errors import RequestError
from sharding.storage import manifest

TIERS = ("skip", "brief", "deep")


@pytest.fixture
def tree(write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    source = write_jsonl(
        {"id": str(i), "text": f"Word {i} and word {i * 7 % 31}, said {i % 5} times over. " * (4 + i * i % 23)}
        for i in range(60)
    )
    return rehearsal_config(source)


def printed(plan: dict[str, Any]) -> str:
    return as_text(show.render(plan))


def as_text(what: Any) -> str:
    console = Console(width=300, file=io.StringIO())
    console.print(what)
    return console.file.getvalue()  # type: ignore[attr-defined]


def scored(tree: dict[str, Any]) -> MillConfig:
    config = from_mapping(tree)
    mill(config, stages=["score"])
    return config


def test_a_complete_sample_gives_the_plan_of_the_scored_parts(tree: dict[str, Any]) -> None:
    config = from_mapping(tree)
    before = make_plan(config, sample_documents=1000)
    assert not before["basis"]["scored"] and before["basis"]["complete"]
    counts = scored(tree)
    after = make_plan(counts, sample_documents=1000)
    assert after["basis"]["scored"]
    assert before["score"]["documents"]["value"] == 60
    for stage in ("augment", "select", "pack"):
        assert before[stage] == after[stage]
    for found in (before, after):
        assert found["augment"]["tokens_out"]["low"] == found["augment"]["tokens_out"]["high"]


def test_the_plan_is_what_the_run_plans(tree: dict[str, Any]) -> None:
    config = scored(tree)
    plan = make_plan(config)
    mill(config, stages=["augment"])
    augmented = manifest.require(config.output, "augment")
    for tier, fact in zip(plan["augment"]["tiers"], augmented.facts["tiers"], strict=True):
        assert tier["segments"]["value"] == pytest.approx(fact["planned_segments"])
        assert tier["tokens_out"]["value"] == pytest.approx(fact["planned_tokens"])
    assert plan["budget"]["planned"] == pytest.approx(augmented.facts["planned_spend"])


@pytest.mark.parametrize("documents", [8, 20, 45])
def test_intervals_of_a_sample_hold_the_whole(tree: dict[str, Any], documents: int) -> None:
    sampled = make_plan(from_mapping(tree), sample_documents=documents)
    whole = make_plan(from_mapping(tree), sample_documents=1000)
    for stage, name in (("score", "tokens_in"), ("score", "segments"), ("augment", "tokens_out")):
        found, truth = sampled[stage][name], whole[stage][name]["value"]
        assert found["low"] < found["high"]
        # Ten percent of samples miss; this much slack is for the three of them that are drawn here.
        assert found["low"] * 0.97 <= truth <= found["high"] * 1.03, (name, found, truth)


def test_a_large_source_is_sampled_in_ranges(
    tree: dict[str, Any], write_jsonl: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.plan.ranges.RANGE_BYTES", 1000)
    config = from_mapping(tree)
    evidence = gather(config, 12)
    assert not evidence.complete and not evidence.whole_groups
    truth = sum(len(json.loads(line)["text"]) for line in Path(tree["source"]["path"]).read_text().splitlines())
    assert evidence.text_bytes == pytest.approx(truth, rel=0.25)
    assert len({document.group for document in evidence.sample}) > 3
    again = gather(config, 12)
    assert [d.segments[0].doc_id for d in again.sample] == [d.segments[0].doc_id for d in evidence.sample]


def test_a_scaled_histogram_stands_for_the_whole() -> None:
    nats = np.array([0.0, 3.5, 10.0, 200.0])
    assert scaled_histogram(nats, np.ones(4)).by_difficulty == _histogram(nats).by_difficulty
    scaled = scaled_histogram(nats, np.array([0.0, 10.4, 10.4, 1000.2]))
    assert scaled.num_segments == 1021 == sum(scaled.by_hash.counts.values())
    assert scaled.total_nats == pytest.approx(10 * 3.5 + 11 * 10 + 1000 * 200, rel=0.02)
    assert DifficultyHistogram.from_json(scaled.to_json()) == scaled


def _histogram(nats: np.ndarray) -> DifficultyHistogram:
    histogram = DifficultyHistogram()
    histogram.add_many([str(i) for i in range(len(nats))], nats)
    return histogram


def test_an_interval_holds_its_estimate() -> None:
    assert estimate(np.array([5.0, *range(100)]))["value"] == 5.0
    assert estimate(np.array([-1.0, *range(101)])) == {"value": -1.0, "low": -1.0, "high": 95.0}


# --- money ------------------------------------------------------------------------------------------------------------


def test_costs_at_the_config_s_prices(tree: dict[str, Any]) -> None:
    tree["models"]["pretend"] |= {"tokens_per_gpu_second": 100.0, "dollars_per_million_tokens": 2.0}
    augment = make_plan(from_mapping(tree), accelerators=4)["augment"]
    tokens = augment["tokens_out"]["value"]
    assert augment["gpu_hours"]["value"] == pytest.approx(tokens / 100 / 3600)
    assert augment["hours"]["value"] == pytest.approx(tokens / 100 / 3600 / 4)
    assert augment["dollars"]["value"] == pytest.approx(tokens * 2e-6)


def test_an_unknown_price_is_named(tree: dict[str, Any]) -> None:
    plan = make_plan(from_mapping(tree))
    assert plan["augment"]["dollars"] is None and plan["augment"]["gpu_hours"] is None
    said = printed(plan)
    assert "unknown: set models.pretend.dollars_per_million_tokens" in said
    assert "unknown: set models.pretend.tokens_per_gpu_second" in said
    assert "rehearsal: not for training" in said


def test_what_is_next_to_nothing_has_no_digits() -> None:
    for value, shown in ((0.00495, "<0.1"), (0.0, "0"), (0.4, "0.4"), (12.0, "12")):
        assert show._short({"value": value, "low": value, "high": value}, least=0.1) == shown


# --- warnings and refusals --------------------------------------------------------------------------------------------


def test_a_budget_that_cannot_be_met_is_refused(tree: dict[str, Any]) -> None:
    tree["budget"]["thinking_tokens_per_source_token"] = 1e5
    with pytest.raises(RequestError, match=r"budget\.thinking_tokens_per_source_token.*estimated from 60 documents"):
        make_plan(from_mapping(tree))


def test_segments_longer_than_the_context(tree: dict[str, Any]) -> None:
    tree["models"]["pretend"]["max_model_len"] = 600
    tree["difficulty"]["segment_tokens"] = 400
    tree["budget"]["tiers"][2] = {
        "name": "deep",
        "model": "pretend",
        "prompt": "brief",
        "max_tokens": 300,
        "expected_tokens": 10,
    }
    tree["budget"]["thinking_tokens_per_source_token"] = 0.04
    warnings = "\n".join(make_plan(from_mapping(tree))["warnings"])
    assert "budget.tiers.2.max_tokens leaves" in warnings and "difficulty.segment_tokens=400" in warnings


def test_a_model_without_a_thinking_mode(tree: dict[str, Any], byte_tokenizer: str) -> None:
    tree["models"]["pretend"] = {"engine": "endpoint", "name": byte_tokenizer, "urls": ["http://localhost:1"]}
    assert any("no thinking mode" in warning for warning in make_plan(from_mapping(tree))["warnings"])
    tree["models"]["pretend"]["thinking"] = True
    assert not any("no thinking mode" in warning for warning in make_plan(from_mapping(tree))["warnings"])


def test_scores_of_another_config_are_not_used(tree: dict[str, Any]) -> None:
    scored(tree)
    tree["difficulty"]["segment_tokens"] = 32
    plan = make_plan(from_mapping(tree))
    assert not plan["basis"]["scored"]
    assert any("difficulty.segment_tokens" in warning for warning in plan["warnings"])


def test_scores_of_other_sources_are_not_used(tree: dict[str, Any]) -> None:
    source = tree.pop("source")
    tree["sources"] = [source | {"name": "one"}, source | {"name": "two"}]
    scored(tree)
    assert make_plan(from_mapping(tree))["basis"]["scored"]
    for change in (
        {"sources": tree["sources"][:1]},
        {"sources": (), "source": source},
        {"duplicates": "drop"},
    ):
        plan = make_plan(from_mapping({**tree, **change}))
        assert not plan["basis"]["scored"]
        assert any(f"({', '.join(sorted(change))})" in warning for warning in plan["warnings"]), plan["warnings"]


# --- the pilot --------------------------------------------------------------------------------------------------------


def test_a_pilot_wants_scores(tree: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="thoughtmill score"):
        make_plan(from_mapping(tree), pilot=5)


@pytest.mark.slow
def test_a_pilot_measures_and_the_run_buys_nothing_twice(tree: dict[str, Any]) -> None:
    config = scored(tree)
    ceiling = make_plan(config)["augment"]
    plan = make_plan(config, pilot=12)
    bought = {row.key for row in read_ledger(config.ledger_url)}
    assert {tier["length_from"] for tier in plan["augment"]["tiers"]} == {"", "pilot"}
    said = plan["augment"]["tokens_out"]
    assert said["high"] < ceiling["tokens_out"]["value"], "traces are shorter than their caps"
    assert plan["augment"]["gpu_hours"] is not None, "the rate was measured"
    assert any("budget.tiers.2.expected_tokens" in warning for warning in plan["warnings"])
    assert make_plan(config)["augment"]["tokens_out"] == said, "a later plan goes by the pilot"

    mill(config)
    augmented = manifest.require(config.output, "augment")
    assert augmented.counts["found"] == len(bought) and 12 <= len(bought) < augmented.counts["generations"]
    assert said["low"] <= augmented.counts["thought_tokens"] <= said["high"]
    for text in (as_text(summary.render(config.output)), (Path(config.output) / "README.md").read_text()):
        assert f"Forecast by a pilot: {said['value']:,.0f} thinking tokens" in text
        assert f"generated: {augmented.counts['thought_tokens']:,} (" in text


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["best", "best_above", "all"])
def test_a_pilot_of_everything_selects_what_the_run_selects(tree: dict[str, Any], keep: str) -> None:
    tree["select"] = {"keep": keep, "gain": {"hold_back_tokens": 16}}
    config = scored(tree)
    plan = make_plan(config, sample_documents=1000, pilot=10_000)
    mill(config)
    selected = manifest.require(config.output, "select")
    # Of the bin that straddles the budget the plan counts the segments as expected, not as the hash deals them.
    assert plan["select"]["candidates"]["value"] == pytest.approx(selected.counts["candidates"], abs=2)
    kept = plan["select"]["kept"]
    assert kept["value"] == pytest.approx(selected.counts["kept"], abs=2)
    assert kept["low"] == kept["high"], "all were measured"
    packed = manifest.require(config.output, "pack").counts
    training_tokens = packed["tokens_source"] + packed["tokens_thought"]
    assert plan["pack"]["training_tokens"]["value"] == pytest.approx(training_tokens, rel=0.01)
    tiers = {tier["name"]: tier for tier in plan["augment"]["tiers"]}
    accounts = {row["tier"]: row for row in selected.facts["account"]}
    for name in ("brief", "deep"):
        assert tiers[name]["kept_share"]["value"] == pytest.approx(accounts[name]["kept_share"], abs=1e-4)
        assert tiers[name]["kept_share"]["low"] == tiers[name]["kept_share"]["high"], "all were measured"
    if keep != "best_above":  # of few that are kept there is no interval
        assert tiers["brief"]["gain_nats"] is not None, "a tier with one sample is valued too"
    gain, actual = tiers["deep"]["gain_nats"], accounts["deep"]["gains"]["heldout"]
    assert gain["value"] == pytest.approx(actual["mean"], abs=1e-3)
    assert gain["low"] < gain["value"] < gain["high"]
    assert f"deep {gain['value']:+.2f} ({gain['low']:+.2f} – {gain['high']:+.2f})" in printed(plan)
    if keep == "best_above":
        assert accounts["brief"]["gains"]["heldout"]["segments"] == accounts["brief"]["kept"] > 0
        assert kept["value"] < make_plan(config)["select"]["candidates"]["value"]
        assert tiers["deep"]["kept_share"]["value"] < tiers["deep"]["accepted_share"]["value"] / 2, (
            "some of the best are below zero"
        )


def test_what_is_kept_and_gained_is_forecast_from_what_selection_kept(tree: dict[str, Any]) -> None:
    config = from_mapping(tree)
    evidence = gather(config, 1000)

    def measured_tier(kept: int, heldout_nats: tuple[float | None, ...]) -> MeasuredTier:
        once = (1,) * len(heldout_nats)
        return MeasuredTier(
            thought_tokens=(20, 24, 22, 26),
            prompt_tokens=once,
            generations=(2,) * len(once),
            accepted=(2,) * len(once),
            cut=once,
            kept=(kept,) * len(once),
            kept_tokens=(10 * kept,) * len(once),
            heldout_nats=heldout_nats,
        )

    def deep(kept: int, heldout_nats: tuple[float | None, ...]) -> TierForecast:
        pilot = Pilot(tiers={"deep": measured_tier(kept, heldout_nats)}, tokens_per_second={})
        return forecast(config, evidence, pilot).tiers[2]

    kept, none = deep(1, (3.0, None, 1.0, 2.0)), deep(0, (None,) * 4)
    assert kept.kept[0] == pytest.approx(kept.segments[0]) and kept.kept_tokens[0] == pytest.approx(10 * kept.kept[0])
    assert kept.accepted is not None and kept.accepted[0] == kept.generations[0] == 2 * kept.kept[0]
    assert estimate(kept.accepted / kept.generations)["low"] < 0.75, "all of four says little of the others"
    assert kept.gain_nats is not None
    gain = estimate(kept.gain_nats)
    # The 95% quantile of Student's t with two degrees of freedom is 2.92; the numbers are 1 apart.
    assert gain["value"] == 2.0 and gain["high"] - gain["low"] == pytest.approx(2 * 2.92 / 3**0.5, rel=0.1)
    assert none.kept[0] == none.kept_tokens[0] == 0 and none.gain_nats is None
    assert estimate(none.kept)["high"] > 0.25 * none.segments[0], "none of four doesn't say that there will be none"
    assert estimate(none.kept_tokens)["high"] > 0
    assert deep(1, (3.0, None, None, None)).gain_nats is None, "one number has no interval"


def test_a_pilot_without_gain_is_worth_a_word(tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = scored(tree)
    for low, word in ((-3.0, "a larger --pilot may tell"), (-9.0, "another prompt or model"), (0.5, "")):
        heldout_nats = (low, low + 1, low + 5, low + 4)
        once = (1,) * 4
        pilot = Pilot(
            tiers={
                "deep": MeasuredTier(
                    **dict.fromkeys(("thought_tokens", "prompt_tokens", "generations", "accepted", "kept"), once),
                    cut=(0,) * 4,
                    kept_tokens=once,
                    heldout_nats=heldout_nats,
                )
            },
            tokens_per_second={},
        )
        monkeypatch.setattr("pipelines.plan.measured.read_pilot", lambda config, scored, pilot=pilot: (pilot, []))
        said = [warning for warning in make_plan(config)["warnings"] if "gain" in warning]
        assert len(said) == bool(word) and all(word in warning and "tier deep" in warning for warning in said)


def test_a_pilot_of_another_config_is_not_used(tree: dict[str, Any], tmp_path: Path) -> None:
    prompt = tmp_path / "own.txt"
    prompt.write_text("Think about this:\n\n{text}")
    tree["budget"]["tiers"][-1]["prompt"] = str(prompt)
    config = scored(tree)
    make_plan(config, pilot=10)
    tree["budget"]["thinking_tokens_per_source_token"] = 0.4
    assert make_plan(from_mapping(tree))["basis"]["pilot_segments"] > 0, "how much is spent doesn't change the traces"
    for section, change in (
        ("sampling", {"temperature": 0.9}),
        ("select", {"keep": "best_above", "min_value": 1.0}),
        ("select", {"value": "self_gain"}),
        ("layout", "at_hard_span"),
        ("difficulty", tree["difficulty"] | {"threshold_nats": 3.0}),
    ):
        plan = make_plan(from_mapping({**tree, section: change}))
        assert plan["basis"]["pilot_segments"] == 0, section
        assert any(f"({section})" in warning and "--pilot" in warning for warning in plan["warnings"]), section
    assert make_plan(from_mapping({**tree, "layout": "after_segment"}))["basis"]["pilot_segments"] > 0
    faster = {"pretend": {**tree["models"]["pretend"], "engine_args": {"capacity": 3}}}
    assert make_plan(from_mapping({**tree, "models": faster}))["basis"]["pilot_segments"] > 0
    prompt.write_text("Think hard about this:\n\n{text}")
    plan = make_plan(from_mapping(tree))
    assert plan["basis"]["pilot_segments"] == 0 and "(prompts)" in "".join(plan["warnings"])


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_starts_without_beam_and_torch(tree: dict[str, Any], tmp_path: Path) -> None:
    scored(tree)
    (tmp_path / "mill.yaml").write_text(yaml.safe_dump(tree))
    code = (
        "import sys, typer.testing, pipelines.cli as cli; cli.set_up_logging = lambda debug: None; "
        f"r = typer.testing.CliRunner().invoke(cli.app, ['plan', {str(tmp_path / 'mill.yaml')!r}, '--json']); "
        "print(r.stdout.strip()); print(sorted({'torch', 'vllm', 'apache_beam', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    plan, heavy = done.stdout.strip().splitlines()
    assert heavy == "[]"
    assert [tier["name"] for tier in json.loads(plan)["augment"]["tiers"]] == list(TIERS)


@pytest.mark.model
@pytest.mark.timeout(900)  # two starts of the engine
def test_a_pilot_of_the_real_model_forecasts_the_run(tmp_path: Path, small_model: str) -> None:
    from pipelines.sample_text import topic_documents

    lines = [json.dumps(document) for document in topic_documents()[:6]]
    (tmp_path / "source.jsonl").write_text("\n".join(lines))
    config = from_mapping(
        {
            "source": {"path": str(tmp_path / "source.jsonl"), "id_field": "id"},
            "output": str(tmp_path / "out"),
            "tokenizer": small_model,
            "difficulty": {"model": small_model, "segment_tokens": 128},
            "models": {"small": {"engine": "vllm", "name": small_model, "max_model_len": 1024}},
            "budget": {
                "thinking_tokens_per_source_token": 0.9,
                "tiers": [
                    {"name": "skip"},
                    {"name": "brief", "model": "small", "prompt": "brief", "max_tokens": 32},
                    {"name": "deep", "model": "small", "prompt": "expert", "max_tokens": 96, "samples": 2},
                ],
            },
            "pack": {"sequence_length": 1024, "num_shards": 1},
        }
    )
    mill(config, stages=["score"])
    plan = make_plan(config, pilot=6)
    assert any("no thinking mode" in warning for warning in plan["warnings"])
    measured = read_pilot(config, manifest.require(config.output, "score"))[0]
    assert measured is not None
    deep = measured.tiers["deep"]
    # So small a pilot may have too few other documents to compare with; what isn't kept never has a gain.
    assert all(kept or nats is None for nats, kept in zip(deep.heldout_nats, deep.kept, strict=True))
    assert not any(measured.tiers["brief"].heldout_nats)
    mill(config, stages=["augment"])
    said, counts = plan["augment"]["tokens_out"], manifest.require(config.output, "augment").counts
    assert 0 < counts["found"] < counts["generations"]
    # One draw, another with every machine's arithmetic: a right 90% interval is missed by one in ten (its coverage is
    # tests/test_intervals.py's business), one of twice its width by hardly any.
    off = counts["thought_tokens"] - said["value"]
    beside = said["high"] - said["value"] if off > 0 else said["value"] - said["low"]
    assert abs(off) <= max(0.05 * said["value"], 2 * beside), (off, said, counts)
