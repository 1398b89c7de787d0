"""Worker processes of the local runner: as many as pay by default, as many as asked for, and never a word of Beam's."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from apache_beam.options.pipeline_options import DirectOptions

from difficulty.config import DifficultyConfig
from difficulty.memory.counting import MemoryConfig
from pipelines import score, stage, workers
from pipelines.beam_options import beam_options
from pipelines.config import MillConfig, Workers
from pipelines.run import mill
from pipelines.score import Score
from pipelines.workers import (
    WORKER_BYTES,
    WORTH_S,
    available_bytes,
    bytes_to_score,
    check,
    loads_model,
    parse,
    set_workers,
)
from pipelines.yaml_config import dump, from_mapping
from sharding.errors import RequestError

PLENTY = 64 * WORKER_BYTES
ROOT = Path(__file__).parent.parent


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight cores, and memory for all of them."""
    monkeypatch.setattr(workers, "cores", lambda: 8)
    monkeypatch.setattr(workers, "available_bytes", lambda: PLENTY)


def config(folder: Path, tokenizer: str, **sections: Any) -> MillConfig:
    source = folder / "source.jsonl"
    lines = [json.dumps({"text": f"Document {number} is about the number {number}. " * 20}) for number in range(40)]
    source.write_text("\n".join(lines), encoding="utf-8")
    return from_mapping(
        {
            "source": {"path": str(source)},
            "output": str(folder / "out"),
            "tokenizer": tokenizer,
            "difficulty": {"scorer": "rehearsal"},
            "budget": {"policy": "fixed", "fixed_tier": "skip", "thinking_tokens": 1, "tiers": [{"name": "skip"}]},
            "pack": {"sequence_length": 256},
            **sections,
        }
    )


def wanted(
    *beam_args: str, workers: Workers = "auto", work_s: float = 0.0, loads_model: bool = False
) -> tuple[int, str]:
    """What Beam is told."""
    options = beam_options(beam_args)
    set_workers(options, beam_args, workers, work_s=work_s, loads_model=loads_model)
    direct = options.view_as(DirectOptions)
    return direct.direct_num_workers, direct.direct_running_mode


IN_PROCESS = (1, "in_memory")


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("work_s", "number"),
    [(0, 1), (1.9 * WORTH_S, 1), (2 * WORTH_S, 2), (5.5 * WORTH_S, 5), (100 * WORTH_S, 8)],
)
def test_as_many_processes_as_pay(work_s: float, number: int) -> None:
    assert wanted(work_s=work_s) == ((number, "multi_processing") if number > 1 else IN_PROCESS)


def test_no_more_than_memory_allows(machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, number in ((3 * WORKER_BYTES, 3), (WORKER_BYTES // 2, 1), (None, 8)):
        monkeypatch.setattr(workers, "available_bytes", lambda free=free: free)
        assert wanted(work_s=1000 * WORTH_S)[0] == number


@pytest.mark.usefixtures("machine")
def test_counting_an_ngram_memory_takes_memory_for_each_process(tmp_path: Path, byte_tokenizer: str) -> None:
    difficulty = DifficultyConfig(scorer="rehearsal", memory=MemoryConfig())
    options = beam_options([])
    set_workers(options, [], "auto", work_s=1000 * WORTH_S, loads_model=False, worker_bytes=bytes_to_score(difficulty))
    # 64 GiB are free: 2 for each of eight; and with a memory sixteen times as large there is room for three of 17.
    assert options.view_as(DirectOptions).direct_num_workers == 8
    larger = DifficultyConfig(scorer="rehearsal", memory=MemoryConfig(max_ngrams=1 << 28))
    options = beam_options([])
    set_workers(options, [], "auto", work_s=1000 * WORTH_S, loads_model=False, worker_bytes=bytes_to_score(larger))
    assert options.view_as(DirectOptions).direct_num_workers == 3
    counting = config(tmp_path, byte_tokenizer, difficulty={"scorer": "rehearsal", "memory": {}})
    assert (
        Score(counting).worker_bytes
        == bytes_to_score(difficulty)
        > Score(config(tmp_path, byte_tokenizer)).worker_bytes
    )


@pytest.mark.usefixtures("machine")
def test_a_stage_that_loads_a_model_has_one_process_unless_told_otherwise() -> None:
    assert wanted(work_s=1000 * WORTH_S, loads_model=True) == IN_PROCESS
    assert wanted(work_s=0, loads_model=True, workers=3) == (3, "multi_processing")
    assert loads_model(DifficultyConfig(model="a"))
    assert not loads_model(DifficultyConfig(scorer="endpoint", model="a", urls=("http://a:1",)))
    assert not loads_model(DifficultyConfig(scorer="rehearsal"))


@pytest.mark.usefixtures("machine")
def test_beams_own_options_come_first() -> None:
    much: dict[str, Any] = {"work_s": 1000 * WORTH_S}
    assert wanted("--direct_num_workers=1", **much) == IN_PROCESS
    two = ("--direct_num_workers=2", "--direct_running_mode=multi_threading")
    assert wanted(*two, workers=5, **much) == (2, "multi_threading")
    assert wanted("--runner=PrismRunner", workers=5, **much) == IN_PROCESS
    assert wanted(workers=1, **much) == IN_PROCESS


@pytest.mark.parametrize("said", ["0", "-1", "two", "1.5", ""])
def test_what_is_no_number_is_refused(said: str) -> None:
    with pytest.raises(RequestError, match=f"--workers: '{said}' is neither auto nor a number of processes above 0"):
        parse(said)


def test_what_is_a_number_is_one() -> None:
    assert (parse("auto"), parse("3")) == ("auto", 3)


@pytest.mark.parametrize("said", [0, -2, "many", 1.5])
def test_the_key_is_a_number_or_auto(tmp_path: Path, byte_tokenizer: str, said: Any) -> None:
    with pytest.raises(RequestError, match="workers"):
        config(tmp_path, byte_tokenizer, workers=said)


@pytest.mark.parametrize(
    ("beam_args", "told"),
    [
        (["--direct_num_workers=2"], "--workers=4: --direct_num_workers=2 says how many already"),
        (["--runner=PrismRunner"], "--workers=4: it is for Beam's local runner; PrismRunner has options of its own"),
    ],
)
def test_two_words_on_workers_are_refused(beam_args: list[str], told: str) -> None:
    with pytest.raises(RequestError, match=told):
        check(4, beam_options(beam_args), beam_args)


def test_memory_is_read_from_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:       5 kB\n", encoding="utf-8")
    (tmp_path / "older").write_text("MemTotal: 9 kB\n", encoding="utf-8")
    assert [available_bytes(tmp_path / name) for name in ("meminfo", "older", "absent")] == [5 * 1024, None, None]


@pytest.mark.usefixtures("machine")
def test_a_stage_says_how_much_there_is_to_do(
    tmp_path: Path, byte_tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Seen(Exception): ...

    told: list[tuple[int, str]] = []

    def instead(pipeline: Any, name: str) -> None:
        direct = pipeline.options.view_as(DirectOptions)
        told.append((direct.direct_num_workers, direct.direct_running_mode))
        raise Seen

    monkeypatch.setattr(stage, "run_pipeline", instead)
    small = config(tmp_path, byte_tokenizer)
    for per_byte in (score.SECONDS_PER_BYTE, 1.0):  # as it is, and as if the source were as large as millions of it
        monkeypatch.setattr(score, "SECONDS_PER_BYTE", per_byte)
        with pytest.raises(Seen):
            mill(small, stages=("score",))
    with pytest.raises(Seen):
        mill(config(tmp_path, byte_tokenizer, workers=1), stages=("score",))
    with pytest.raises(Seen):
        mill(small, stages=("score",), workers=3)
    assert told == [IN_PROCESS, (8, "multi_processing"), IN_PROCESS, (3, "multi_processing")]


def test_two_processes_write_the_same_bytes_without_a_word(tmp_path: Path, byte_tokenizer: str) -> None:
    one = config(tmp_path, byte_tokenizer)
    mill(one, stages=("score",))
    (tmp_path / "mill.yaml").write_text(dump(one), encoding="utf-8")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pipelines.cli", "score", str(tmp_path / "mill.yaml")),
            *("--set", f"output={tmp_path / 'two'}", "--workers", "2", "--quiet"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stderr == ""
    assert digests(tmp_path / "two") == digests(tmp_path / "out") != {}


def digests(output: Path) -> dict[str, str]:
    parts = sorted((output / "stages" / "score").glob("*.arrow"))
    return {part.name: hashlib.sha256(part.read_bytes()).hexdigest() for part in parts}
