"""`thoughtmill status`: what it says follows from plan, ledger and heartbeats alone."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from augment.ledger import parts
from augment.ledger.reading import read_ledger
from pipelines.run import mill
from pipelines.watch import progress, status
from pipelines.yaml_config import from_mapping
from sharding import storage
from sharding.errors import MillError
from sharding.records.types import LedgerRow
from sharding.storage import clock, manifest
from sharding.storage.output import Output
from tests.test_ledger import row

NOW = 1_763_000_000.0
TIERS = ("brief", "deep")


def model(**prices: Any) -> dict[str, Any]:
    return {"revision": "main", "engine": "vllm", "dollars_per_million_tokens": None, "tokens_per_gpu_second": None} | (
        prices
    )


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A plan of two tiers with a model each; `write` puts it into the output."""
    monkeypatch.setattr(status.time, "time", lambda: NOW)
    return {
        "ledger": str(tmp_path / "elsewhere"),
        "began_at": NOW - 1000,
        "generations": 30.0,
        "planned_tokens": 5000.0,
        "target": 0.01,
        "unit": "dollars",
        "tiers": {
            "brief": {"model": "small", "generations": 20.0, "planned_tokens": 2000.0},
            "deep": {"model": "large", "generations": 10.0, "planned_tokens": 3000.0},
        },
        "models": {
            "small": model(name="s", dollars_per_million_tokens=1.0, tokens_per_gpu_second=100.0),
            "large": model(name="l", dollars_per_million_tokens=10.0),
        },
        "prompts": {"expert": "v1"},
        "warnings": ["model large (l) has no thinking mode; more tokens don't replace it"],
        "rehearsal": False,
    }


def write(folder: Path, plan: dict[str, Any], rows: list[LedgerRow]) -> str:
    output = str(folder / "out")
    storage.write_json(f"{output}/stages/augment/plan.json", plan)
    if rows:
        parts.write_part(plan["ledger"], rows)
    return output


def made(n: int, tier: str = "brief", at: float = NOW - 10, **fields: Any) -> LedgerRow:
    values = {
        "tier": tier,
        "model": {"brief": "s", "deep": "l"}.get(tier, "?"),
        "engine": "vllm",
        "prompt_version": "v1",
        "thought_tokens": 50,
        "wall_s": 10.0,
        "finished_at": at,
    }
    return row(n, **{**values, **fields})


def beat(folder: Path, name: str, age_s: float, **models: Any) -> None:
    content = {"at": NOW - age_s, "host": "h", "pid": 1, "models": models, "tokens_per_second": 1.0}
    storage.write_json(f"{folder}/out/stages/augment/alive/{name}.json", content)


def test_spend_in_the_budget_s_unit_and_in_money(tmp_path: Path, plan: dict[str, Any]) -> None:
    rows = [made(n) for n in range(10)]
    output = write(tmp_path, plan, rows)
    found = status.read(output)["generation"]
    assert (found["generations"], found["thought_tokens"]) == (10, 500)
    assert found["unit"] == "dollars" and found["spent"] == found["dollars"] == pytest.approx(500e-6)
    assert found["gpu_hours"] == pytest.approx(5 / 3600)
    parts.write_part(plan["ledger"], [made(n, "deep") for n in range(20, 22)])
    found = status.read(output)["generation"]
    assert found["spent"] == pytest.approx(500e-6 + 100e-5)
    assert found["gpu_hours"] is None, "the large model has no known rate"


def test_what_several_models_made_counts_as_the_dearest_s(tmp_path: Path, plan: dict[str, Any]) -> None:
    """As the budget prices a recipe whose steps ask other models: the row of what came has the tokens of all."""
    plan["tiers"]["deep"] |= {"model": "small", "models": ["small", "large"]}
    output = write(tmp_path, plan, [made(n, "deep", model="s", made_from=["a", "b"]) for n in range(2)])
    found = status.read(output)["generation"]
    assert found["thought_tokens"] == 100 and found["spent"] == pytest.approx(100e-5)
    assert found["gpu_hours"] is None, "the large model has no known rate"


def test_rows_of_other_models_prompts_and_repeats_do_not_count(tmp_path: Path, plan: dict[str, Any]) -> None:
    others = [made(1, model="x"), made(2, revision="v9"), made(3, engine="endpoint"), made(4, prompt_version="v0")]
    output = write(tmp_path, plan, [made(5), *others, made(6, prompt="brief"), made(5)])
    assert status.read(output)["generation"]["generations"] == 1


def test_what_the_pilot_alone_bought_is_told_beside(tmp_path: Path, plan: dict[str, Any]) -> None:
    rows = [made(n) for n in range(10)]
    plan["beside"] = [row.request_key for row in rows[:7]]
    output = write(tmp_path, plan, rows)
    found = status.read(output)
    assert (found["generation"]["generations"], found["generation"]["thought_tokens"]) == (3, 150)
    assert found["generation"]["spent"] == pytest.approx(150e-6)
    assert (found["beside"]["generations"], found["beside"]["thought_tokens"]) == (7, 350)
    assert found["beside"]["dollars"] == pytest.approx(350e-6)
    console = Console(width=200, file=io.StringIO())
    console.print(status.render(found))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "0.00015 of 0.01 dollars" in said and "7 generations of 350 tokens were paid for that this plan" in said


def test_rows_that_another_model_of_a_server_answered_count(tmp_path: Path, plan: dict[str, Any]) -> None:
    """They were asked of the plan's model and paid for; the row names the one that wrote them."""
    for each in plan["models"].values():
        each["engine"] = "endpoint"
    rows = [made(1, engine="endpoint"), made(2, engine="endpoint", model="a fallback")]
    output = write(tmp_path, plan, [*rows, made(3, engine="endpoint", model="another", revision="v9")])
    generation = status.read(output)["generation"]
    assert (generation["generations"], generation["thought_tokens"]) == (2, 100)


def test_two_models_of_one_name_are_billed_each_at_its_price(tmp_path: Path, plan: dict[str, Any]) -> None:
    """Such as one model on two kinds of machine. The ledger calls both by their name; the tier tells them apart."""
    plan["models"]["large"]["name"] = "s"
    plan["models"]["third"] = model(name="s", dollars_per_million_tokens=1000.0)
    plan["tiers"]["deepest"] = {"model": "third", "generations": 10.0, "planned_tokens": 3000.0}
    rows = [made(n) for n in range(10)] + [made(n, "deep", model="s") for n in range(20, 24)]
    rows += [made(30, "deepest", model="s"), made(31, "of an older config", model="s")]
    found = status.read(write(tmp_path, plan, rows))["generation"]
    assert found["generations"] == 16
    assert found["dollars"] == pytest.approx((10 * 50 * 1 + 5 * 50 * 10 + 50 * 1000) / 1e6)


def test_a_plan_without_thoughts(tmp_path: Path, plan: dict[str, Any]) -> None:
    output = write(tmp_path, {**plan, "models": {}, "prompts": {}, "tiers": {}, "generations": 0}, [made(1)])
    found = status.read(output)["generation"]
    assert (found["generations"], found["spent"], found["seconds_left"]) == (0, 0.0, None)


def test_rate_and_time_left(tmp_path: Path, plan: dict[str, Any]) -> None:
    old = [made(100 + n, at=NOW - 5000) for n in range(5)]
    output = write(tmp_path, plan, [*old, *(made(n, at=NOW - 100 + 10 * n) for n in range(10))])
    found = status.read(output)["generation"]
    # Ten generations of 50 tokens, the first begun 110 s and the last finished 10 s ago.
    assert found["tokens_per_second"] == pytest.approx(500 / 100)
    # 5 more of the brief tier at 50 tokens, all 10 of the deep one at the planned 300.
    assert found["seconds_left"] == pytest.approx((5 * 50 + 10 * 300) / 5)
    assert found["seconds_since_last"] == pytest.approx(10)
    beat(tmp_path, "a", 5)
    assert status.read(output)["generation"]["tokens_per_second"] == pytest.approx(500 / 110)


def test_heartbeats_tell_what_is_under_way(tmp_path: Path, plan: dict[str, Any]) -> None:
    output = write(tmp_path, plan, [])
    found = status.read(output)["generation"]
    assert (found["processes"], found["spent"], found["gpu_hours"]) == (0, 0.0, None)
    state = {"in_flight": 8, "waiting": 30, "capacity": 8, "failed": 1}
    beat(tmp_path, "a", 5, s=state)
    beat(tmp_path, "b", 9, s=state, l={**state, "in_flight": 2})
    beat(tmp_path, "gone", 500, s=state)
    (tmp_path / "out" / "stages" / "augment" / "alive" / "half.json.tmp").write_text("{")
    found = status.read(output)["generation"]
    assert (found["processes"], found["in_flight"], found["waiting"], found["failed"]) == (2, 18, 90, 3)
    assert (found["tokens_per_second"], found["seconds_left"], found["seconds_since_last"]) == (None, None, None)


def test_what_a_terminal_shows(tmp_path: Path, plan: dict[str, Any]) -> None:
    output = write(tmp_path, plan, [made(n) for n in range(10)])
    beat(tmp_path, "a", 5, s={"in_flight": 8, "waiting": 30, "capacity": 8, "failed": 0})
    console = Console(width=200, file=(tmp_path / "said").open("w"))
    console.print(status.render(status.read(output)))
    console.file.close()
    said = (tmp_path / "said").read_text()
    for words in ("10 in the ledger", "0.0005 of 0.01 dollars", "GPU-hours", "8 in flight and 30 waiting", "tokens/s"):
        assert words in said, said
    assert "no thinking mode" in said and "min at this rate" in said
    assert json.loads(json.dumps(status.read(output)))


def test_no_run_is_no_status(tmp_path: Path) -> None:
    with pytest.raises(MillError, match="holds no run"):
        status.read(str(tmp_path))


def test_a_real_run(write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]]) -> None:
    source = write_jsonl([{"id": str(i), "text": f"text {i} and {i * 7} " * 40} for i in range(8)])
    config = from_mapping(rehearsal_config(source))
    mill(config, stages=["score", "augment"])
    augmented = manifest.require(config.output, "augment")
    found = status.read(config.output)
    generation = found["generation"]
    assert generation["generations"] == augmented.counts["generations"] <= generation["generations_planned"] + 1
    assert generation["thought_tokens"] == augmented.counts["thought_tokens"] == generation["spent"]
    assert generation["budget"] == augmented.facts["target_spend"]
    assert generation["processes"] == generation["in_flight"] == 0
    assert found["warnings"] == augmented.facts["warnings"]
    assert not Path(config.output, "stages", "augment", "alive").exists()
    assert "beside" not in found
    row = next(iter(read_ledger(config.ledger_url)))
    other = {"key": "k", "request_key": "of another plan", "thought_tokens": 7}
    parts.write_part(config.ledger_url, [msgspec.structs.replace(row, **other)])
    found = status.read(config.output)
    assert found["generation"]["thought_tokens"] == generation["thought_tokens"], "its requests are known"
    assert (found["beside"]["generations"], found["beside"]["thought_tokens"]) == (1, 7)
    assert time.time() - generation["seconds_since_last"] <= time.time()


def test_a_run_with_two_models_of_one_name(
    write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]]
) -> None:
    prices = {"cheap": 1.0, "dear": 100.0}
    tree = rehearsal_config(
        write_jsonl([{"id": str(i), "text": f"text {i} of many words and numbers {i * i} " * 30} for i in range(12)]),
        models={
            name: {"engine": "rehearsal", "name": "pretend", "dollars_per_million_tokens": price}
            for name, price in prices.items()
        },
    )
    for tier, name in zip(tree["budget"]["tiers"][1:], prices, strict=True):
        tier["model"] = name
    config = from_mapping(tree)
    mill(config, stages=["score", "augment"])
    tokens = {tier: sum(r.thought_tokens for r in read_ledger(config.ledger_url) if r.tier == tier) for tier in TIERS}
    assert min(tokens.values()) > 0
    paid = sum(tokens[tier] * price for tier, price in zip(TIERS, prices.values(), strict=True)) / 1e6
    assert status.read(config.output)["generation"]["dollars"] == pytest.approx(paid)


def test_a_machine_whose_clock_is_off_sees_what_is_alive(tmp_path: Path, plan: dict[str, Any]) -> None:
    """Here the clock says `NOW`, and the store, by which heartbeats are dated, says another year."""
    output = write(tmp_path, plan, [made(1)])
    at = Output(output)
    model = {"in_flight": 3, "waiting": 0, "capacity": 4, "failed": 0}
    storage.write_json(f"{at.alive}/one.json", {"at": clock.now_s(at.alive), "models": {"small": model}})
    snapshot = {"stage": "augment", "at": clock.now_s(output), "elapsed_s": 1.0, "counts": {}}
    storage.write_json(at.progress, snapshot)
    found, doing = progress.state(output)
    assert found is not None and (found["generation"]["processes"], found["generation"]["in_flight"]) == (1, 3)
    assert doing is not None and doing["stage"] == "augment"

    storage.write_json(f"{at.alive}/one.json", {"at": clock.now_s(at.alive) - 100, "models": {"small": model}})
    storage.write_json(at.progress, {**snapshot, "at": clock.now_s(output) - 100})
    found, doing = progress.state(output)
    assert found is not None and found["generation"]["processes"] == 0 and doing is None
    assert sorted(path.name for path in Path(at.alive).iterdir()) == ["one.json"], "nothing is left behind"
