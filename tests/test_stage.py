"""The skeleton of a stage: what counts as done, who may publish, and what a second run leaves alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.dataflow.dataflow_runner import DataflowRuntimeException

from augment.feeding.worker import TooManyFailures
from pipelines.borrowed_scores import BorrowedScores
from pipelines.config import MillConfig
from pipelines.outcome import Outcome
from pipelines.pack import Pack
from pipelines.run import mill
from pipelines.running import run_pipeline, told_by_worker
from pipelines.score import Score
from pipelines.stage import Did
from pipelines.watch.progress import Progress, published
from pipelines.yaml_config import from_mapping
from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.models.server import EndpointFailed
from sharding.storage import manifest
from sharding.storage.lease import Lease
from sharding.storage.output import Output
from tests.conftest import rehearsal_tree

Config = Callable[..., MillConfig]


@pytest.fixture
def config(tmp_path: Path, byte_tokenizer: str) -> Config:
    source = tmp_path / "source.jsonl"
    source.write_text(
        "".join(json.dumps({"id": str(i), "text": f"text {i} and {i * 7} " * 30}) + "\n" for i in range(6))
    )

    def make(**sections: Any) -> MillConfig:
        return from_mapping(rehearsal_tree(tmp_path, byte_tokenizer, str(source), **sections))

    return make


def another_run(output: str) -> None:
    """As if another run had taken the output over."""
    storage.write_json(Output(output).lease, {"token": "another", "pid": 1, "host": "elsewhere", "beats": 0})


def test_a_run_that_lost_its_lease_publishes_nothing(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    mill(config(), stages=("score", "augment", "select"))
    conclude = Pack.conclude

    def taken_over_meanwhile(stage: Pack, outcome: Outcome) -> Any:
        another_run(stage.output)
        return conclude(stage, outcome)

    monkeypatch.setattr(Pack, "conclude", taken_over_meanwhile)
    with pytest.raises(MillError, match="took over"):
        Pack(config()).run()
    output = Output(config().output)
    assert not any(storage.exists(url) for url in (output.manifest("pack"), output.success, output.card))
    assert json.loads(storage.read_bytes(output.lease))["token"] == "another"


def test_borrowing_scores_takes_the_lease(config: Config, tmp_path: Path) -> None:
    mill(config(), stages=["score"])
    borrower = config(output=str(tmp_path / "other"), scored=config().output)
    with Lease(borrower.output, "augment"), pytest.raises(RequestError, match="being written by another run"):
        BorrowedScores(borrower).run()
    assert manifest.read(borrower.output, "score") is None
    assert BorrowedScores(borrower).run()[1] == Did.RAN


def test_borrowing_removes_no_scores(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the output itself, spelled otherwise; and its own, which others may have borrowed."""
    monkeypatch.chdir(tmp_path)
    mill(config(output="out"), stages=["score"])
    shutil.copytree("out", "copy")
    for output, scored in (("out", "./out"), ("copy", "out")):
        [part] = Path(output).rglob("segments-*")
        assert BorrowedScores(config(output=output, scored=scored)).run()[1] == Did.REVISED
        assert part.exists()


def test_a_run_that_is_refused_leaves_the_first_one_s_news(config: Config) -> None:
    mill(config(), stages=["score"])
    output = Output(config().output)
    beat = storage.join(output.alive, "first.json")
    storage.write_json(beat, {})
    from pipelines.cli import err

    with Lease(output.root, "augment"), Progress(output.root, err, quiet=True) as first:
        first.stage("augment")
        while published(output.root) is None:
            pass
        found = published(output.root)
        with Progress(output.root, err, quiet=True) as second, pytest.raises(RequestError, match="another run"):
            mill(config(), on_stage=lambda stage, done, did: second.stage(None if done else stage))
        still = published(output.root)
        assert still is not None and found is not None and still["run"] == found["run"]
        assert storage.exists(beat)
    assert published(output.root) is None


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(TooManyFailures, MillError), (EndpointFailed, MillError), (RequestError, RequestError), (MillError, MillError)],
)
def test_every_error_of_ours_is_recognised_in_a_traceback(kind: type[MillError], expected: type[MillError]) -> None:
    name = f"{kind.__module__}.{kind.__qualname__}"
    text = f"Traceback (most recent call last):\n  File x\n{name}: it was too much [while running 'A/B']\n\nand more\n"
    found = told_by_worker(text)
    assert type(found) is expected and str(found) == "it was too much [while running 'A/B']"


def test_every_runner_s_error_is_looked_into() -> None:
    """Dataflow's own class is no RuntimeError."""
    failed = DataflowRuntimeException("Error:\nTraceback:\nsharding.errors.RequestError: x: is wrong", None)
    run = partial(SimpleNamespace, wait_until_finish=partial(raise_, failed))
    pipeline = SimpleNamespace(run=run, options=PipelineOptions())
    with pytest.raises(RequestError, match=r"^score: x: is wrong$"):
        run_pipeline(pipeline, "score")


def raise_(error: Exception) -> None:
    raise error


def test_other_errors_keep_their_traceback() -> None:
    assert told_by_worker("Traceback:\n  File x\nValueError: no\naugment.nowhere.Missing: no\n") is None


def test_a_changed_scorer_is_not_the_one_that_scored(config: Config, tmp_path: Path, byte_tokenizer: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(byte_tokenizer, model)
    (model / "config.json").write_text('{"model_type": "llama"}')
    (model / "model.safetensors").write_bytes(b"one")
    scored_by = {"scorer": "causal_lm", "model": str(model), "segment_tokens": 64}
    before = Score(config(difficulty=scored_by))
    assert before.fingerprint == Score(config(difficulty=scored_by)).fingerprint
    (model / "model.safetensors").write_bytes(b"two")
    assert before.fingerprint != Score(config(difficulty=scored_by)).fingerprint
    assert before.inputs.keys() == {"source", "tokenizer", "scorer"}


@pytest.mark.slow
def test_a_changed_memory_is_not_the_one_that_scored(config: Config, tmp_path: Path) -> None:
    difficulty = {"scorer": "rehearsal", "segment_tokens": 64}
    lender = config(difficulty={**difficulty, "memory": {"order": 3}}, output=str(tmp_path / "lender"))
    mill(lender, stages=["score"])
    memory = tmp_path / "memory.arrow"
    shutil.copy(Output(lender.output).memory, memory)
    remembering = config(difficulty={**difficulty, "memory_path": str(memory)})
    assert Score(remembering).run()[1] == Did.RAN
    assert Score(remembering).run()[1] == Did.NOTHING
    memory.write_bytes(memory.read_bytes() + b"\0")
    with pytest.raises(RequestError, match=r"input memory: .*--replace"):
        Score(remembering).run()


@pytest.mark.slow
def test_editing_the_card_writes_the_card_anew_and_nothing_else(config: Config) -> None:
    mill(config())
    output = Path(config().output)
    times = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    named = config(card={"name": "Another name", "license": "cc0-1.0"})
    told: dict[str, Any] = {}
    mill(named, on_stage=lambda stage, found, did: found and told.update({stage: did}))
    assert told == {"score": Did.NOTHING, "augment": Did.NOTHING, "select": Did.NOTHING, "pack": Did.REVISED}
    changed = {str(path.relative_to(output)) for path, at in times.items() if path.stat().st_mtime_ns != at}
    assert changed == {"README.md", "croissant.json", "config.yaml", "MANIFEST.json", "_SUCCESS"}
    for name in ("README.md", "croissant.json", "config.yaml", "MANIFEST.json"):
        assert "Another name" in (output / name).read_text(), name
    assert Pack(named).run()[1] == Did.NOTHING
    # Killed between the manifest and the last file of all.
    (output / "_SUCCESS").unlink()
    assert Pack(named).run()[1] == Did.REVISED
    assert (output / "_SUCCESS").exists()


@pytest.mark.slow
def test_what_another_format_wrote_is_replaced_only_when_asked(config: Config) -> None:
    mill(config())
    for stage in manifest.STAGES:
        url = Output(config().output).manifest(stage)
        storage.write_json(url, json.loads(storage.read_bytes(url)) | {"format": 1, "fingerprint": "old"})
    with pytest.raises(RequestError, match=r"in format 1, and this version of thoughtmill reads format \d+.*--replace"):
        mill(config())
    made = mill(config(), replace=True)
    assert made["pack"].format == manifest.FORMAT


@pytest.mark.slow
def test_what_a_killed_run_left_is_swept(config: Config) -> None:
    mill(config())
    output = Path(config().output)
    left = [output / "data" / "train-00000-of-00009.arrow", output / "stages" / ".outcome-pack-dead"]
    for path in left:
        path.write_bytes(b"half")
    kept = output / "data" / "notes.arrow"
    kept.write_bytes(b"mine")
    Path(Output(str(output)).manifest("pack")).unlink()
    assert Pack(config()).run()[1] == Did.RAN
    assert kept.exists() and not any(path.exists() for path in left)
