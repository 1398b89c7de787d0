"""A total failure doesn't look like success: too little that is kept is told, with its reason and the key to change."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.testing
import yaml

from augment.ledger.reading import read_ledger
from augment.selection.account import account_counts
from augment.selection.valuing import ValuedSegment
from augment.selection.verdict import HANDFUL, REMEDIES, check_kept, shortfall, worth
from pipelines import cli
from pipelines.plan import make_plan
from pipelines.run import mill
from pipelines.yaml_config import from_mapping
from sharding.errors import MillError
from sharding.storage import manifest
from tests.test_selection import candidate

Tree = dict[str, Any]
NOTHING_PASSES = {"gates": {"too_short": {"min_bytes": 100_000}}}


def counts(segments: int, kept: int, **rejected: int) -> dict[str, int]:
    reasons = {f"rejected.{reason}": number for reason, number in rejected.items()}
    total = sum(number for reason, number in rejected.items()) + kept
    return {"segments_thought_about": segments, "segments_with_thought": kept, "candidates": total, **reasons}


@pytest.mark.parametrize(
    ("found", "share", "said"),
    [
        (counts(10, 2, loop=8), 0.2, None),
        (counts(10, 1, loop=8, not_chosen=20), 0.2, "1 of 10 segments .*10%; .*20%.*: 8 of 29 traces .* loop: raise "),
        (counts(HANDFUL, 0, loop=5), 0.2, None),
        (counts(HANDFUL + 1, 0, loop=6), 0.2, "0 of 6 segments"),
        (counts(10, 1, below_threshold=9), 0.5, "lower select.min_value"),
        (counts(10, 0), 0.2, r"min_kept_share is 20%\)$"),
        (counts(10, 0, loop=9), 0.0, None),
        ({"kept": 0, "candidates": 100}, 0.2, None),  # of an earlier version
    ],
)
def test_too_small_a_share_names_the_main_reason_and_its_key(
    found: dict[str, int], share: float, said: str | None
) -> None:
    told = shortfall(found, share)
    if said is None:
        assert told is None
    else:
        assert told is not None
        assert re.search(said, told), told


def test_every_reason_has_a_way_out(rehearsal_config: Callable[..., Tree]) -> None:
    gates = from_mapping(rehearsal_config("x.jsonl")).select.gates.enabled()
    assert set(gates) - {"language"} <= set(REMEDIES)


def test_only_nothing_at_all_is_an_error() -> None:
    check_kept(counts(100, 1, loop=99), 0.2, "out")
    check_kept(counts(100, 0, loop=100), 0.0, "out")
    with pytest.raises(MillError, match=r"(?s)loop.*--replace.*inspect out --rejected"):
        check_kept(counts(100, 0, loop=100), 0.2, "out")


def test_the_language_that_is_thought_in_is_named() -> None:
    english = "Because the one half of the sea is nearer to the moon than the other, there are two tides in a day. " * 3
    german = "Weil die eine Hälfte des Meeres dem Mond näher ist als die andere, gibt es zwei Fluten am Tag. " * 3
    found: dict[str, int] = {}
    for n, text in enumerate([english] * 5 + [german] * 2):
        one = candidate(0, reasons=("language",), doc_id=f"d{n}", text=text)
        for name, number in account_counts([one], ValuedSegment(candidates=[one], document=f"d{n}")).items():
            found[name] = found.get(name, 0) + number
    assert (found["foreign.en"], found["foreign.de"]) == (5, 2)
    told = shortfall(found, 0.2)
    assert told is not None and "mostly en" in told and "select.gates.language.allowed: [en]" in told


def row(tier: str, **gains: Any) -> dict[str, Any]:
    return {"tier": tier, "candidates": 3, "gains": gains}


def test_a_tier_that_does_harm_and_one_that_nobody_measured_are_told() -> None:
    account = [
        row("bad", heldout_first={"mean": -1.0, "interval95": [-1.5, -0.5]}),
        row("unsure", heldout_first={"mean": -1.0, "interval95": [-2.5, 0.5]}),
        row("few", heldout_first={"mean": -1.0, "interval95": None}),
        row("unknown"),
    ]
    [(bad, is_bad), (unknown, is_unknown_bad)] = worth(account)
    assert is_bad and "tier bad" in bad and "-1.00 nats per segment" in bad and "(-1.50 to -0.50)" in bad
    assert not is_unknown_bad and unknown == "unknown: unmeasured"


# --- whole stages -----------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(write_jsonl: Callable[..., str], rehearsal_config: Callable[..., Tree]) -> Tree:
    source = write_jsonl([{"id": str(i), "text": f"Document {i} says {i * i}. " * 30} for i in range(12)])
    return rehearsal_config(source)


def invoked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: Tree, *arguments: str) -> tuple[int, str]:
    """Exit code, and all that was said, of a command with this config."""
    path = tmp_path / "mill.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    monkeypatch.setattr(cli, "set_up_logging", lambda debug: None)
    done = typer.testing.CliRunner().invoke(cli.app, [arguments[0], str(path), *arguments[1:]])
    return (getattr(done.exception, "exit_code", done.exit_code), f"{done.output}{done.exception or ''}")


def test_a_run_that_keeps_nothing_fails_and_selecting_again_buys_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: Tree
) -> None:
    code, said = invoked(tmp_path, monkeypatch, tree | {"select": NOTHING_PASSES}, "run")
    assert code == 1 and "select.gates.too_short.min_bytes" in said and "--replace" in said
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    bought = len(list(read_ledger(str(tmp_path / "out" / "ledger"))))

    before = manifest.require(tree["output"], "select")
    asked = tree | {"select": NOTHING_PASSES | {"min_kept_share": 0}}
    assert invoked(tmp_path, monkeypatch, asked, "run")[0] == 0, "it was asked for"
    assert manifest.require(tree["output"], "select") == before, "it was not selected again for that"

    few = tree | {"select": {"gates": {"too_short": {"min_bytes": 400}}, "min_kept_share": 0.99}}
    code, said = invoked(tmp_path, monkeypatch, few, "run", "--replace")
    assert code == 0 and "select.min_kept_share is 99%" in said and "rejected as too_short" in said
    assert len(list(read_ledger(str(tmp_path / "out" / "ledger")))) == bought
    code, said = invoked(tmp_path, monkeypatch, few, "select")
    assert code == 0 and "warning" in said and "rejected as too_short" in said, "of the stage alone, done already"


def test_a_pilot_that_keeps_nothing_says_why_and_does_not_advise_to_spend_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: Tree
) -> None:
    tree["select"] = NOTHING_PASSES
    mill(from_mapping(tree), stages=["score"])
    code, said = invoked(tmp_path, monkeypatch, tree, "plan", "--pilot", "12")
    assert code == 1 and "rejected as too_short" in said and "select.gates.too_short.min_bytes" in said
    assert "larger --pilot" not in said
    later = make_plan(from_mapping(tree))
    assert any("rejected as too_short" in warning for warning in later["warnings"]), "a later plan knows it"
    tree["select"] = NOTHING_PASSES | {"min_kept_share": 0}
    assert not make_plan(from_mapping(tree))["nothing_kept"], "the share is no part of what was measured"
    assert invoked(tmp_path, monkeypatch, tree, "plan", "--pilot", "12")[0] == 0


@pytest.mark.parametrize("field", ["body", "text"])
def test_a_score_stage_that_scores_nothing_names_the_field_and_those_there_are(tree: Tree, field: str) -> None:
    tree["source"] = tree["source"] | {"text_field": field, "max_quarantined": 1}
    if field == "text":
        assert mill(from_mapping(tree), stages=["score"])["score"].counts["documents"] == 12
        return
    with pytest.raises(MillError, match=r"none of 12 records .*source\.text_field: 'body'.*the record has id, text"):
        mill(from_mapping(tree), stages=["score"])
