"""The feeding benchmark: the arithmetic of its bound, the simulated engine, its parts at small size, its figures."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from augment.engines.config import ModelConfig
from augment.engines.protocol import GenerationRequest
from benchmarks import feeding
from benchmarks.feeding_bare import generation_requests
from benchmarks.feeding_load import Turn, engine_cpu_s, make_load, run_ours, take_turns
from benchmarks.feeding_server import server_flags
from benchmarks.feeding_simulated import (
    SimulatedEngine,
    bound_steps,
    gain_of_order,
    ledger_cost,
    schedule_steps,
    simulate,
)
from tests.endpoint_server import ScriptedServer, completion

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("lengths", "slots", "least"),
    [
        ([], 4, 0),
        ([3], 4, 3),
        ([4, 4, 4, 4], 4, 4),
        ([4, 4, 4, 4, 1], 4, 5),
        ([1, 1, 1, 9], 2, 9),
        ([2, 2, 3], 1, 7),
    ],
)
def test_the_least_number_of_steps(lengths: list[int], slots: int, least: int) -> None:
    assert bound_steps(sum(lengths), max(lengths, default=0), slots) == least


@pytest.mark.parametrize(
    ("lengths", "steps"),
    [([1, 1, 1, 9], 10), ([9, 1, 1, 1], 9), ([5, 5, 5], 10), ([2, 3, 4, 5], 8)],
)
def test_the_steps_of_an_order(lengths: list[int], steps: int) -> None:
    assert schedule_steps(lengths, 2) == steps


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 8))
def test_no_order_beats_the_bound(lengths: list[int], slots: int) -> None:
    least = bound_steps(sum(lengths), max(lengths), slots)
    assert least <= schedule_steps(lengths, slots) < least + max(lengths)
    assert least <= schedule_steps(sorted(lengths, reverse=True), slots)


def test_the_order_matters_less_the_longer_the_run() -> None:
    gains = [gain_of_order(number) for number in (3, 12, 100)]
    assert gains == sorted(gains, reverse=True) and 1.1 < gains[0] < 1.5 and 1 <= gains[2] < 1.02


def test_the_simulated_engine_takes_what_its_schedule_takes() -> None:
    """Everything is there at once, so its ticks are those of the order it was asked in."""

    async def run() -> SimulatedEngine:
        engine = SimulatedEngine(slots=3, step_s=0.002)
        await engine.start()
        asked = [
            GenerationRequest(key=str(i), prompt_token_ids=np.zeros(1, np.uint32), max_tokens=4 + 3 * i)
            for i in range(12)
        ]
        made = await asyncio.gather(*map(engine.generate, asked))
        await engine.close()
        assert [len(generation.token_ids) for generation in made] == engine.lengths
        return engine

    engine = asyncio.run(run())
    # The first tick may come before all have arrived.
    assert 0 <= engine.steps - schedule_steps(engine.lengths, 3) <= 1


def test_ours_on_a_simulated_engine(byte_tokenizer: str) -> None:
    run = simulate(byte_tokenizer, count=200, slots=32, step_s=0.0005)
    assert 200 < run.turn.tokens == run.tokens and run.bound_steps == max(-(-run.tokens // 32), run.longest)
    assert run.bound_s == pytest.approx(run.bound_steps * 0.0005)
    assert 0 < run.ratio <= run.ratio_of_steps <= 1


def test_what_the_ledger_costs(byte_tokenizer: str) -> None:
    cost = ledger_cost(byte_tokenizer, count=300, tokens_per_row=100)
    assert cost.rows == 300 and 0.8 < cost.tokens / 300 / 100 < 1.2
    assert cost.parts >= 1 and cost.add_s > 0 and cost.write_s > 0
    assert cost.share_of_wall == pytest.approx((cost.add_s + cost.write_s) / (cost.tokens / 8086))


def test_a_load_has_every_prompt_once_and_every_cap(byte_tokenizer: str, tmp_path: Path) -> None:
    model = ModelConfig(engine="rehearsal", name="rehearsal", max_model_len=512)
    load = make_load(model, tmp_path, tokenizer=byte_tokenizer, count=120, caps=(16, 32, 64))
    requests = [request for request, samples in load.elements if samples == [0]]
    assert len({request.request_key for request in requests}) == 120
    caps = [request.max_tokens for request in requests]
    assert set(caps) == {16, 32, 64} and caps != sorted(caps)
    assert len(set(load.texts())) == 120 and all(text.startswith("Explain") for text in load.texts())
    turn = run_ours(load, str(tmp_path / "ledger"))
    assert 120 < turn.tokens <= sum(caps) and turn.elapsed_s > 0


def test_sides_take_turns() -> None:
    order: list[tuple[str, int]] = []

    def side(name: str, rate: float) -> object:
        def take(number: int) -> Turn:
            order.append((name, number))
            return Turn(tokens=int(rate * (number + 1)), elapsed_s=1.0)

        return take

    turns = take_turns({"a": side("a", 10), "b": side("b", 20)}, rounds=3)  # type: ignore[dict-item]
    assert order == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert [turn.tokens_per_second for turn in turns["b"]] == [20.0, 40.0, 60.0]


def test_ratios_are_of_the_medians() -> None:
    turns = {
        "ours": [Turn(100, 1.0, 2.0), Turn(100, 2.0, 4.0), Turn(100, 50.0, 4.0)],
        "other": [Turn(100, 4.0, 4.0), Turn(100, 1.0, 4.0), Turn(100, 10.0, 4.0)],
        "other, one batch": [Turn(100, 1.0, 1.0)] * 3,
    }
    assert feeding.show("Title", turns, "ratio_to_other") == {
        "ratio_to_other": 2.0,
        "ratio_to_other_per_cpu": 1.0,
        "ratio_to_other_one_batch": 0.5,
        "ratio_to_other_one_batch_per_cpu": 0.25,
    }


def test_the_cpu_time_of_what_was_started_counts() -> None:
    before_s = engine_cpu_s()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        give_up_at = time.monotonic() + 20
        while engine_cpu_s() < before_s + 0.05:
            assert time.monotonic() < give_up_at
            time.sleep(0.01)
        busy.kill()


def test_arguments_become_flags() -> None:
    arguments = {"model": "m", "enforce_eager": True, "enable_chunked_prefill": False, "revision": None, "seed": 3}
    assert server_flags(arguments) == ["--model", "m", "--enforce-eager", "--no-enable-chunked-prefill", "--seed", "3"]


def test_the_side_of_datatrove(byte_tokenizer: str, tmp_path: Path) -> None:
    for module in ("datatrove", "orjson", "aiofiles"):
        pytest.importorskip(module)
    from benchmarks.feeding_datatrove import run_datatrove

    server = ScriptedServer(lambda number, body: {**completion(body), "usage": {"completion_tokens": 5}})
    model = ModelConfig(engine="rehearsal", name="rehearsal", max_model_len=512)
    load = make_load(model, tmp_path, tokenizer=byte_tokenizer, count=12, caps=(16, 32))
    requests = generation_requests(load)
    try:
        turn = run_datatrove(requests, server.url, "small", str(tmp_path / "saved"))
    finally:
        server.stop()
    assert turn.tokens == 12 * 5
    sent = {(body["seed"], body["max_tokens"], tuple(body["prompt"])) for body in server.bodies}
    assert sent == {(r.seed, r.max_tokens, tuple(r.prompt_token_ids.tolist())) for r in requests}


def test_parts_are_named() -> None:
    assert feeding.parts_of("bare,ledger") == ["bare", "ledger"]
    with pytest.raises(argparse.ArgumentTypeError, match="no such part: bear; there are bare, simulated"):
        feeding.parts_of("bear")


def test_what_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(feeding, "find_spec", lambda name: None if name == "datatrove" else object())
    assert feeding.runnable(["simulated", "handler", "datatrove"]) == {"simulated", "handler"}
    assert "datatrove is left out: not installed: datatrove" in capsys.readouterr().out


@pytest.mark.slow
def test_the_figures(byte_tokenizer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The parts without a model, all small: a table each, and the figures in the last line."""
    for name, value in (("SIMULATED_REQUESTS", 200), ("LEDGER_ROWS", 200), ("RESUME_ROWS", 60)):
        monkeypatch.setattr(feeding, name, value)
    monkeypatch.setattr(feeding, "RESUME_MISSING", 20)
    monkeypatch.setattr(
        sys, "argv", ["feeding", "--model", byte_tokenizer, "--only", "simulated,replicas,ledger,resume"]
    )
    feeding.main()
    last = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert last["name"] == "feeding"
    assert set(last["figures"]) == {
        "ratio_to_bare_simulated",
        "ratio_to_bare_simulated_steps",
        "ratio_to_bare_replicas",
        "ratio_to_bare_replicas_steps",
        "ledger_share_of_wall",
        "resume_100k_s",
        "resume_100k_cpu_s",
        "fresh_start_100k_s",
    }
    assert all(figure > 0 for figure in last["figures"].values())


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_bare_engine_and_ours_make_the_same_tokens(small_model: str) -> None:
    command = [sys.executable, "-m", "benchmarks.feeding", "--model", small_model]
    command += ["--only", "bare", "--requests", "12", "--rounds", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ})
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout.strip().splitlines()[-1])["figures"]
    names = ("ratio_to_bare_engine", "ratio_to_bare_engine_longest_first")
    assert set(figures) == {*names, *(f"{name}_per_cpu" for name in names)}
    assert all(0.2 < ratio < 5 for ratio in figures.values())
