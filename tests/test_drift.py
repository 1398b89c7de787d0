"""Drift: a run is held against its pilot, warned of once, and stopped where the config says so."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from augment.feeding import worker
from augment.feeding.heartbeat import Heartbeat, read_beats, stop_url
from augment.feeding.stopping import stop_everywhere
from augment.ledger.parts import every_part
from augment.ledger.reading import read_ledger
from augment.ledger.writer import LedgerWriter
from augment.selection.keeping import NOT_CHOSEN
from benchmarks.drift import documents_until_found
from difficulty.budget.allocate import allocate
from difficulty.budget.histogram import DifficultyHistogram
from difficulty.budget.stopping import StopConfig
from difficulty.budget.tiers import BudgetConfig, TierConfig
from pipelines import report
from pipelines.augment import Augment
from pipelines.cli import summary
from pipelines.config import MillConfig
from pipelines.plan import drift_watch, make_plan
from pipelines.plan.drift import Totals, find_drifts, promises_of, unlike_promised
from pipelines.plan.drift_gates import SampledGates
from pipelines.plan.drift_watch import Generations, pilot_options, stopped_because
from pipelines.plan.explored import of_plan
from pipelines.plan.measured import MeasuredTier, Pilot
from pipelines.report import page
from pipelines.run import mill
from pipelines.stage import Did
from pipelines.watch import status
from pipelines.watch.files import Drift, read_drifts
from pipelines.yaml_config import from_mapping
from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.records.arrow import to_batch
from sharding.records.families import LEDGER_SCHEMA
from sharding.records.types import Candidate
from sharding.storage import manifest
from sharding.storage.output import Output
from tests.test_ledger import row as ledger_row


def pilot(tokens: list[int], cut: list[int] | None = None, accepted: list[int] | None = None) -> MeasuredTier:
    nothing = (0,) * len(tokens)
    return MeasuredTier(
        thought_tokens=tuple(tokens),
        prompt_tokens=nothing,
        generations=(1,) * len(tokens),
        accepted=tuple(accepted or nothing),
        cut=tuple(cut or nothing),
        kept=nothing,
        kept_tokens=nothing,
        heldout_nats=(None,) * len(tokens),
    )


def seen(tokens: Any, cut: Any = 0) -> Totals:
    tokens = np.asarray(tokens, np.float64)
    return Totals(np.ones(len(tokens)), tokens, np.broadcast_to(np.asarray(cut, np.float64), tokens.shape))


def judged(rejected: list[int], documents: int = 200) -> Totals:
    """What a run has generated whose gates were asked about some of its documents."""
    of_gates = np.asarray(rejected, np.float64)
    return replace(seen(SPREAD * (documents // 40)), judged=np.ones(len(of_gates)), rejected=of_gates)


SPREAD = [80, 120] * 20


@pytest.mark.parametrize(
    ("promised", "run", "kinds"),
    [
        (pilot(SPREAD), seen(SPREAD * 5), []),
        (pilot(SPREAD), seen([2 * t for t in SPREAD] * 5), ["length"]),
        (pilot(SPREAD), seen([t // 2 for t in SPREAD] * 5), ["length"]),
        (pilot(SPREAD), seen([2 * t for t in SPREAD][:31]), []),  # too few documents to look at
        (pilot(SPREAD[:6]), seen([2 * t for t in SPREAD] * 5), []),  # too few to promise anything
        (pilot(SPREAD), seen(SPREAD * 5, [0, 1] * 100), ["cut"]),
        (pilot(SPREAD), seen(SPREAD * 5, [1] + [0] * 199), []),  # a pilot of 40 can miss one in 200
        (pilot([100] * 40), seen([100] * 199 + [60]), []),
        (pilot([100] * 40, [1] * 40), seen([100] * 200, 1), []),
        (pilot(SPREAD, accepted=[1] * 40), judged([0, 0, 1, 1] * 20), ["rejected"]),
        (pilot(SPREAD, accepted=[0, 1] * 20), judged([0] * 80), ["rejected"]),
        (pilot(SPREAD, accepted=[0, 1] * 20), judged([0, 1] * 40), []),
        (pilot(SPREAD, accepted=[1] * 40), judged([1] * 31), []),  # too few documents that the gates were asked about
        (pilot(SPREAD, accepted=[1] * 40), judged([0] * 199 + [1]), []),
    ],
)
def test_what_is_apart(promised: MeasuredTier, run: Totals, kinds: list[str]) -> None:
    found = find_drifts(promises_of({"deep": promised}), {"deep": run})
    assert [drift.kind for drift in found] == kinds
    assert all(drift.off_by > 0 for drift in found)


def test_what_a_drift_says() -> None:
    (drift,) = find_drifts(promises_of({"deep": pilot(SPREAD)}), {"deep": seen([2 * t for t in SPREAD] * 5)})
    assert (drift.promised, drift.measured, drift.generations, drift.documents) == (100.0, 200.0, 200, 200)
    assert 0.5 < drift.off_by < 1.0, "what is sure is less than what is seen"
    assert "200 tokens long on average, and the pilot promised 100" in str(drift)


def test_what_is_said_of_gates() -> None:
    (drift,) = find_drifts(promises_of({"deep": pilot(SPREAD, accepted=[1] * 40)}), {"deep": judged([0, 1] * 100)})
    assert (drift.promised, drift.measured, drift.documents) == (0.0, 0.5, 200) and 0 < drift.off_by < 0.5
    assert "traces are rejected by a gate in 50.0% of cases, and the pilot promised 0.0%" in str(drift)


def test_an_exploring_pilot_promises_what_it_says_of_the_segments_that_are_bought() -> None:
    """Hard segments get longer thoughts that gain more, and the plan buys no others: that is no drift."""
    ids, difficulty = [f"d{i}#0" for i in range(80)], [1.0] * 40 + [100.0] * 40
    explored = replace(
        pilot([90, 110] * 20 + [290, 310] * 20),
        kept=(1,) * 80,
        heldout_nats=(-0.1, 0.1) * 20 + (1.9, 2.1) * 20,
        segment=tuple(ids),
        difficulty_nats=tuple(difficulty),
        weight=(1.0,) * 80,
    )
    tiers = (TierConfig(name="skip"), TierConfig(name="deep", model="m", prompt="expert", max_tokens=300))
    histogram = DifficultyHistogram()
    histogram.add_many(ids, np.array(difficulty))
    plan = allocate(histogram, BudgetConfig(thinking_tokens=40 * 300, tiers=tiers), source_tokens=1, prices={})
    gain = {"mean": 2.0, "low": 1.9, "high": 2.1}
    account: list[dict[str, Any]] = [{"tier": "deep", "candidates": 200, "kept": 200, "gains": {"heldout": gain}}]
    found = []
    for allocation in (plan, None):
        promised = of_plan(Pilot(tiers={"deep": explored}, tokens_per_second={}), allocation)
        drifts = find_drifts(promises_of(promised), {"deep": seen([290, 310] * 100)})
        found.append(([drift.kind for drift in drifts], len(unlike_promised(promised, account))))
    assert found == [([], 0), (["length"], 1)]


def test_a_segment_promises_as_much_as_it_stands_for() -> None:
    weighted = replace(pilot([100] * 20 + [300] * 20), weight=(9.0,) * 20 + (1.0,) * 20)
    assert {promise.kind: promise.mean for promise in promises_of({"deep": weighted})}["length"] == pytest.approx(120)


@pytest.mark.parametrize(
    ("kept", "gain", "said"),
    [
        (50, 1.1, []),
        (90, 1.1, ["90.0% of the traces were kept, and the pilot promised 50.0%"]),
        (50, -1.0, ["kept traces gain -1.00 nats a segment, and the pilot promised +1.00"]),
    ],
)
def test_selection_is_held_against_the_pilot(kept: int, gain: float, said: list[str]) -> None:
    measured = replace(pilot(SPREAD), kept=(0, 1) * 20, heldout_nats=(0.8, 1.2) * 20)
    mean = {"mean": gain, "low": gain - 0.3, "high": gain + 0.3}
    account: list[dict[str, Any]] = [
        {"tier": "deep", "candidates": 100, "kept": kept, "gains": {"heldout": mean}},
        {"tier": "x"},
    ]
    found = unlike_promised({"deep": measured}, account)
    assert len(found) == len(said) and all(part in text for part, text in zip(said, found, strict=True))


@pytest.mark.parametrize("pilot_segments", [20, 100])
def test_a_run_as_its_pilot_was_is_seldom_called_another(pilot_segments: int) -> None:
    """Of 60 runs with 160 looks at three tiers each, as few are suspected as is promised; the benchmark has more."""
    random = np.random.default_rng(1)
    assert sum(documents_until_found(random, pilot_segments, 1.0) is not None for _ in range(60)) <= 3 + 3
    found = [documents_until_found(random, 100, 2.0) for _ in range(5)]
    assert all(until is not None and until <= 1000 for until in found), found


# --- what of a ledger counts ------------------------------------------------------------------------------------------


def test_short_traces_that_end_first_are_no_drift(tmp_path: Path) -> None:
    """Traces of 1 to 100 tokens that take a second a token, all begun at once: halfway only short ones are there."""
    url, began = str(tmp_path / "ledger"), 1_000_000.0
    writer = LedgerWriter(url, flush_rows=1000)
    for i in range(1, 51):
        writer.add(row(i, tokens=i, wall_s=float(i), finished_at=began + i))
    writer.flush()
    generations = Generations(url, 0, ["v"])
    generations.read()
    assert list(generations.totals().get("deep", seen([])).generations) == []
    for i in range(51, 101):
        writer.add(row(i, tokens=i, wall_s=float(i), finished_at=began + i))
    for i in range(101, 111):
        writer.add(row(i, tokens=5, wall_s=5.0, finished_at=began + 105 + i))
    writer.close()
    generations.read()
    totals = generations.totals()["deep"]
    assert totals.tokens[:100].mean() == pytest.approx(50.5)
    assert len(totals.tokens) >= 100 and len(generations.totals(ended=True)["deep"].tokens) == 110


def row(number: int, *, tokens: int, wall_s: float, finished_at: float) -> Any:
    return ledger_row(
        number,
        segment_id=f"d{number}#0",
        tier="deep",
        prompt_version="v",
        thought_tokens=tokens,
        closed="natural",
        wall_s=wall_s,
        finished_at=finished_at,
    )


def test_what_is_of_other_prompts_or_was_there_before_does_not_count(tmp_path: Path) -> None:
    url = str(tmp_path / "ledger")
    writer = LedgerWriter(url, flush_rows=10)
    writer.add(row(1, tokens=9, wall_s=1.0, finished_at=5.0))
    writer.close()
    for since_ms, versions in ((int(time.time() * 1000) + 60_000, ["v"]), (0, ["other"])):
        generations = Generations(url, since_ms, versions)
        generations.read()
        assert generations.totals(ended=True) == {}


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_another_process_is_told_by_a_file(tmp_path: Path) -> None:
    beats = str(tmp_path / "alive")
    order = worker.WorkOrder(run_id="r", began_ms=0, ledger_url=str(tmp_path / "ledger"), beats_url=beats)
    stop_everywhere(order, "it has drifted")
    heartbeat = Heartbeat(beats, beat_s=0.05)
    heartbeat.begin()
    one, other = (
        worker.Worker(order),
        worker.Worker(worker.WorkOrder(run_id="s", began_ms=0, ledger_url=order.ledger_url)),
    )
    deadline = time.monotonic() + 10
    while heartbeat.stop is None and time.monotonic() < deadline:
        time.sleep(0.02)
    for each in (one, other):
        each._heartbeat = heartbeat
    with pytest.raises(worker.Stopped, match="it has drifted"):
        one.check_failures()
    other.check_failures()  # of another run
    assert read_beats(beats, time.time()) and Path(stop_url(beats)).exists()
    heartbeat.close()


@pytest.fixture
def tree(write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    source = write_jsonl(
        {"id": str(i), "text": f"Word {i} and word {i * 7 % 31}, said {i % 5} times over. " * 4} for i in range(300)
    )
    tree = rehearsal_config(source, ledger={"flush_rows": 8, "flush_seconds": 0.05})
    tree["budget"]["tiers"] = [tree["budget"]["tiers"][0], tree["budget"]["tiers"][1]]
    tree["budget"]["thinking_tokens_per_source_token"] = 0.8
    tree["select"] = {"value": "none"}
    return tree


def with_pilot(tree: dict[str, Any], times: float, *, all_rejected: bool = False) -> MillConfig:
    """A config whose pilot has measured traces so many times as long as they are; and then none that is kept.

    Args:
        all_rejected: it has seen none that passes a gate.
    """
    config = from_mapping(tree)
    mill(config, stages=["score"])
    make_plan(config, pilot=20)
    path = Path(Output(config.output).pilot)
    found = json.loads(path.read_text())
    for tier in found["tiers"].values():
        tier["thought_tokens"] = [round(times * tokens) for tokens in tier["thought_tokens"]]
        if times < 1:
            tier["kept"] = [0] * len(tier["kept"])
        if all_rejected:
            tier["accepted"] = [0] * len(tier["accepted"])
    path.write_text(json.dumps(found))
    return config


def drifting(
    tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch, *, look_s: float, rate: int, key: str = "length_off_by"
) -> MillConfig:
    """A config that stops for drift, whose pilot has promised less than half, or that gates reject everything; four
    generations at a time, at a rate."""
    monkeypatch.setattr(drift_watch, "LOOK_S", look_s)
    monkeypatch.setattr(drift_watch, "MAX_SHARE", 1.0)
    tree["models"]["pretend"]["engine_args"] = {"capacity": 4, "tokens_per_second": rate}
    of_length = key == "length_off_by"
    with_pilot(tree, 0.4 if of_length else 1.0, all_rejected=not of_length)
    tree["budget"]["stop_if"] = {key: 0.2}
    return from_mapping(tree)


def shown(what: Any) -> str:
    console = Console(width=400, file=io.StringIO())
    console.print(what)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("times", "kinds"), [(1.0, []), (0.5, ["length"])])
def test_a_run_warns_once(
    tree: dict[str, Any], times: float, kinds: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    config = with_pilot(tree, times)
    with caplog.at_level(logging.WARNING):
        mill(config)
    drifts = read_drifts(config.output)
    assert [drift.kind for drift in drifts] == kinds
    said = [record.getMessage() for record in caplog.records if "the pilot promised" in record.getMessage()]
    assert len(said) == len(kinds), "once, by whichever look was the first to tell"
    for text in (shown(status.render(status.read(config.output))), shown(summary.render(config.output))):
        assert text.count("long on average, and the pilot promised") == len(kinds)
    assert shown(summary.render(config.output)).count("kept, and the pilot promised 0.0%") == len(kinds)
    assert (Path(config.output) / "README.md").read_text().count("Unlike the pilot: tier brief") == len(kinds)
    told = page.warnings_of(config.output, report.read_stages(config.output))
    assert len([said for said in told if "the pilot promised" in said]) == 2 * len(kinds)
    stopping = from_mapping({**tree, "budget": {**tree["budget"], "stop_if": {"length_off_by": 0.1}}})
    assert Augment(stopping).run()[1] is Did.NOTHING, "when to stop decides no text"


@pytest.mark.parametrize("key", ["length_off_by", "rejected_off_by"])
def test_a_run_stops_before_more_is_spent(tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    config = drifting(tree, monkeypatch, look_s=0.05, rate=1500, key=key)
    with pytest.raises(MillError, match=rf"budget\.stop_if\.{key}=0\.2 allows.*--pilot") as stopped:
        mill(config)
    planned = status.read(config.output)["generation"]["generations_planned"]
    made = {row.key for row in read_ledger(config.ledger_url)}
    assert 20 < len(made) < 0.8 * planned, (len(made), planned, str(stopped.value))
    assert not Path(stop_url(Output(config.output).alive)).exists()

    del tree["budget"]["stop_if"]
    tree["models"]["pretend"]["engine_args"] = {}
    augmented = mill(from_mapping(tree), stages=["augment"])["augment"]
    assert augmented.counts["found"] == len(made), "nothing that was paid for is lost"


def test_the_gates_are_asked_as_selection_asks_them(tree: dict[str, Any]) -> None:
    tree["select"] = {"value": "none", "gates": {"too_short": {"min_bytes": 150}}}
    config = from_mapping(tree)
    made = mill(config)
    gates = SampledGates(config, made["score"])
    gates.load()
    said = {
        row["key"]: rejected
        for _, batches in every_part(config.ledger_url)
        for batch in batches or ()
        for row, rejected in zip(batch.to_pylist(), gates.rejected(batch), strict=True)
    }
    decided = {
        candidate.key: bool(set(candidate.reasons) - {NOT_CHOSEN})
        for family in ("kept", "rejected")
        for url in manifest.file_urls(config.output, made["select"], family)
        for candidate in storage.read_records(url, Candidate)
    }
    assert said == decided and 0.1 < sum(decided.values()) / len(decided) < 0.9
    assert gates.rejected(of_another_corpus()) == [None]


def of_another_corpus() -> Any:
    """A part of the ledger about a segment that isn't in the sample."""
    return to_batch([row(1, tokens=1, wall_s=1.0, finished_at=1.0)], LEDGER_SCHEMA)


@pytest.mark.slow
def test_processes_of_their_own_stop_too(tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are told by a file, which they look for with every heartbeat."""
    config = drifting(tree, monkeypatch, look_s=0.5, rate=40)
    two = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")
    with pytest.raises(MillError, match=r"budget\.stop_if\.length_off_by=0\.2 allows"):
        mill(config, beam_args=two)
    planned = status.read(config.output)["generation"]["generations_planned"]
    assert 20 < len({row.key for row in read_ledger(config.ledger_url)}) < 0.9 * planned


def test_the_way_on_is_a_pilot_like_the_one_that_promised() -> None:
    (drift,) = find_drifts(promises_of({"deep": pilot(SPREAD)}), {"deep": seen([2 * t for t in SPREAD] * 5)})
    said = [
        stopped_because(drift, StopConfig(length_off_by=0.1), pilot_options(explored)) for explored in (True, False)
    ]
    assert "thoughtmill plan CONFIG --pilot 400 --explore`" in said[0]
    assert "thoughtmill plan CONFIG --pilot 50`" in said[1]


@pytest.mark.parametrize(
    ("limits", "message"),
    [({}, "names nothing to stop for"), ({"length_off_by": -1}, "length_off_by"), ({"gain": 1}, "stop_if.gain")],
)
def test_limits_that_can_not_be(tree: dict[str, Any], limits: dict[str, Any], message: str) -> None:
    tree["budget"]["stop_if"] = limits
    with pytest.raises(RequestError, match=message):
        from_mapping(tree)


def test_nothing_to_hold_a_run_against(tree: dict[str, Any]) -> None:
    tree["budget"]["stop_if"] = {"cut_off_by": 0.1}
    config = from_mapping(tree)
    with pytest.raises(RequestError, match=r"budget\.stop_if: needs a pilot .*--pilot 50"):
        mill(config)
    assert not list(read_ledger(config.ledger_url)), "before anything is spent"


def test_foreign_drifts_are_told_as_such(tmp_path: Path) -> None:
    path = Path(Output(str(tmp_path)).drift)
    path.parent.mkdir(parents=True)
    path.write_text('[{"tier": "deep"}]')
    with pytest.raises(MillError, match="is not what has drifted of this version"):
        read_drifts(str(tmp_path))
    assert Drift.__struct_fields__[:2] == ("tier", "kind")
