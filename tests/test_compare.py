"""Runs side by side: what differs is told, gains are compared on the same segments, nobody's output is touched."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks import paired_gains
from pipelines import compare
from pipelines.cli import app
from pipelines.compare import paired, show, tables
from pipelines.compare.paired_figure import differences, measured_otherwise
from pipelines.compare.runs import read_runs, short_names
from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.records.families import KEPT
from sharding.records.types import Candidate
from sharding.storage import manifest
from tests.test_report import HOSTILE, Outline, milled, with_hostile_candidates

BEYOND = 0.5
"""What every trace of the second run gains beyond the first one's, in nats."""


def revise(output: str, stage: str, **changed: Any) -> None:
    manifest.write(output, msgspec.structs.replace(manifest.require(output, stage), **changed))


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: str) -> tuple[str, str]:
    """A run, and one that is like it but for a budget, a secret, and what its traces gain."""
    folder = tmp_path_factory.mktemp("compare")
    first = milled(folder, byte_tokenizer, select={"value": "continuation_gain", "gain": {"hold_back_tokens": 16}})
    other = str(shutil.copytree(first, folder / "other"))
    config = manifest.require(other, "augment").config
    budget = {**config["budget"], "thinking_tokens_per_source_token": 0.75}
    revise(other, "augment", config={**config, "budget": budget, "models": {"pretend": {"api_key": "hunter2"}}})
    selected = manifest.require(other, "select")
    vocab_size = manifest.require(other, "score").facts["vocab_size"]
    for family in ("kept", "rejected"):
        for url in manifest.file_urls(other, selected, family):
            gained = [
                msgspec.structs.replace(c, gain_nats=None if c.gain_nats is None else c.gain_nats + BEYOND)
                for c in storage.read_records(url, Candidate)
            ]
            storage.write_part(url, gained, KEPT.schema(vocab_size=vocab_size))
    return first, other


def files_of(output: str) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in Path(output).rglob("*") if path.is_file()}


def test_the_command_prints_and_writes_beside_nobodys_output(
    outputs: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = [files_of(output) for output in outputs]
    done = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["compare", *outputs])
    assert done.exit_code == 0, done.output
    assert re.search(r"budget\.thinking_tokens_per_s\S*\s+0\.5\s+0\.75", done.output)
    assert "…" not in done.output and "hunter2" not in done.output
    assert max(map(len, (line for line in done.output.splitlines() if "  " in line.strip()))) <= 80
    page = (tmp_path / "compare.html").read_text()
    assert "hunter2" not in page and "wrote compare.html" in done.output
    assert [files_of(output) for output in outputs] == before
    monkeypatch.chdir(Path(outputs[1]) / "data")
    refused = CliRunner().invoke(app, ["compare", *outputs])
    assert isinstance(refused.exception, RequestError) and "--target" in str(refused.exception)
    told = CliRunner().invoke(app, ["compare", *outputs, "--json"])
    assert told.exit_code == 0 and not list(Path.cwd().glob("*.html"))
    found = json.loads(told.output)
    assert [run["name"] for run in found["runs"]] == ["out", "other"]
    [difference] = found["differences"]
    assert difference["gains"]["all that passed"]["mean"]["mean"] == pytest.approx(BEYOND)


def test_only_what_differs_is_told(outputs: tuple[str, str]) -> None:
    figure = tables.configuration(read_runs(outputs))
    keys = {row[0]: row[1:] for row in figure.rows}
    assert keys["budget.thinking_tokens_per_source_token"] == ("0.5", "0.75")
    assert keys["models.pretend.api_key"] == (tables.ABSENT, "REDACTED")
    assert not [key for key in keys if key.startswith(("pack", "source", "output"))]
    same = tables.configuration(read_runs(outputs)[:1] * 2)
    assert not same.rows and "have the same values" in same.missing


def test_the_same_segments_are_held_against_each_other(outputs: tuple[str, str]) -> None:
    runs = read_runs(outputs)
    for what, gain in paired.GAINS.items():
        found = paired.difference(*(run.facts.sample.candidates for run in runs), gain)
        assert found is not None and found.mean.mean == pytest.approx(BEYOND), what
        assert found.other - found.first == pytest.approx(BEYOND)
    itself = paired.difference(*[runs[0].facts.sample.candidates] * 2, paired.without_choice)
    assert itself is not None and itself.mean.mean == 0.0
    figure = differences(runs)
    assert figure.rows[0][0] == "other" and figure.rows[0][5].startswith(f"+{BEYOND:.2f}")


def test_gains_that_were_measured_otherwise_are_not_compared(outputs: tuple[str, str], tmp_path: Path) -> None:
    other = str(shutil.copytree(outputs[1], tmp_path / "other"))
    config = manifest.require(other, "select").config
    revise(other, "select", config={**config, "scorer": {**config["scorer"], "model": "another"}})
    runs = read_runs([outputs[0], other])
    assert measured_otherwise(*runs) == ["scorer.model"]
    figure = differences(runs)
    assert figure.missing and "other can't be held against out: scorer.model differ" in figure.notes[0]
    assert show.to_json(runs, compare.figures(runs))["differences"] == []


def test_the_page_has_the_same_documents_of_each(outputs: tuple[str, str]) -> None:
    page = compare.render(outputs)
    outline = Outline(page)
    assert not outline.open and len(outline.ids) == len(set(outline.ids))
    assert {"differences", "plan", "kept", "gains", "paired", "cost", "room"} <= set(outline.ids)
    articles = page.count("<article")
    assert articles and page.count('class="copy"') == 2 * articles
    assert not {"src", "srcset", "action", "data"} & {name for name, _ in outline.attributes}
    assert compare.render(outputs) == page


def test_hostile_text_stays_text(outputs: tuple[str, str], tmp_path: Path) -> None:
    hostile = str(shutil.copytree(outputs[0], tmp_path / f"hostile {HOSTILE[:8].replace('/', '')}"))
    with_hostile_candidates(hostile)
    outline = Outline(compare.render([outputs[1], hostile]))
    assert not outline.open and outline.tags.count("script") == outline.tags.count("style") == 1
    assert "img" not in outline.tags and "\x1b" not in "".join(outline.texts)


def test_partial_runs_are_compared_as_far_as_they_are(outputs: tuple[str, str], tmp_path: Path) -> None:
    partial = str(shutil.copytree(outputs[1], tmp_path / "partial"))
    for stage in ("select", "pack"):
        Path(manifest.manifest_url(partial, stage)).unlink()
    figures = {figure.key: figure for figure in compare.figures(read_runs([outputs[0], partial]))}
    assert "select stage has not finished" in figures["paired"].missing
    assert {row[0]: row[2] for row in figures["kept"].rows}["kept share"] == tables.ABSENT
    assert not Outline(compare.render([outputs[0], partial])).open


@pytest.mark.parametrize(
    ("outputs", "names"),
    [(["/a/out", "/b/out"], ["a/out", "b/out"]), (["x/a", "x/b/"], ["a", "b"]), (["out", "/c/out"], ["out", "c/out"])],
)
def test_names_are_as_short_as_they_can_be(outputs: list[str], names: list[str]) -> None:
    assert short_names(outputs) == names


@pytest.mark.parametrize(
    ("outputs", "said"), [(["a"], "1 output;"), (["a"] * 7, "2 to 6"), (["a", "b", "a/"], "a/ is named twice")]
)
def test_what_can_t_be_compared_is_refused(outputs: list[str], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        read_runs(outputs)


def test_nothing_scored_is_an_error(outputs: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(MillError, match="holds no scored run"):
        read_runs([outputs[0], str(tmp_path)])


# --- the statistic: its null and its coverage -------------------------------------------------------------------------


@pytest.mark.parametrize("change", [0.0, 0.4])
def test_intervals_hold_the_difference_and_chance_is_what_it_says(change: float) -> None:
    random, trials = np.random.default_rng(7), 400
    found = [paired_gains.trial(random, 20, change) for _ in range(trials)]
    assert 0.92 <= sum(paired_gains.holds(one, change) for one in found) / trials <= 0.985
    widths = [one.mean.high - one.mean.low for one in found if one.mean.high is not None and one.mean.low is not None]
    assert len(widths) == trials and max(widths) < 2.5, (
        "what both runs share doesn't widen it: unpaired it would be 3.4"
    )
    if not change:
        left = sum(map(paired_gains.leaves, found)) / trials
        assert 0.02 <= left <= 0.09, "by chance alone a difference leaves its range in 5% of cases"


def test_a_segment_that_was_shown_otherwise_is_not_the_same_one() -> None:
    gains = [np.ones(1)] * 9
    made_up = paired_gains.candidates
    assert paired.difference(made_up(gains), made_up(gains, shown_tokens=9), paired.without_choice) is None
    few = paired.difference(made_up(gains[:5]), made_up(gains), paired.without_choice)
    assert few is not None and few.mean.low is None and few.chance is None and few.mean.documents == 5
