"""The command line as a person meets it: exit codes, messages, start-up time."""

import gzip
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.testing
import yaml

from pipelines import cli

THOUGHTMILL = [sys.executable, "-m", "pipelines.cli"]


def thoughtmill(*arguments: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(
        [*THOUGHTMILL, *arguments], capture_output=True, text=True, check=False, env=environment, **kwargs
    )


@pytest.fixture
def config_file(
    tmp_path: Path, write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]]
) -> Callable[..., str]:
    source = write_jsonl([{"id": str(i), "text": f"Document {i}. " * 40} for i in range(8)])

    def write(**sections: Any) -> str:
        path = tmp_path / "mill.yaml"
        path.write_text(yaml.safe_dump(rehearsal_config(source, **sections)))
        return str(path)

    return write


@pytest.mark.slow
def test_run_verify_status_and_the_second_run(config_file: Callable[..., str], tmp_path: Path) -> None:
    config = config_file()
    first = thoughtmill("run", config)
    assert first.returncode == 0, first.stderr
    assert "documents" in first.stdout and "8 in" in first.stdout and "rehearsal: not for training" in first.stdout
    output = str(tmp_path / "out")
    page = tmp_path / "out" / "report.html"
    assert f"{page} (figures and documents to read" in first.stdout and "Reading room" in page.read_text()
    page.write_text("as it was")
    second = thoughtmill("run", config)
    assert second.returncode == 0 and "Everything was done already" in second.stdout
    assert page.read_text() == "as it was"
    page.unlink()
    assert str(page) in thoughtmill("run", config).stdout and page.is_file()
    before = page.read_text()
    assert thoughtmill("pack", config, "--replace", "--set", "pack.sequence_length=256").returncode == 0
    assert "sequences of 512 tokens" in before and "sequences of 256 tokens" in page.read_text()
    assert thoughtmill("verify", output).returncode == 0
    status = thoughtmill("status", output, "--json")
    found = json.loads(status.stdout)
    assert found["complete"] and found["rehearsal"] and set(found["stages"].values()) == {"done"}
    assert found["generation"]["generations"] > 0


def test_a_report_that_fails_fails_no_run(
    config_file: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(output: str) -> str:
        raise OSError("the pen is dry [really]")

    monkeypatch.setattr("pipelines.report.write", breaks)
    monkeypatch.setattr(cli, "set_up_logging", lambda debug: None)
    runner = typer.testing.CliRunner()
    done = runner.invoke(cli.app, ["run", config_file()])
    assert done.exit_code == 0, done.output
    assert "the pen is dry [really]" in done.stderr and f"thoughtmill report {tmp_path / 'out'}" in done.stderr
    assert "README.md (the dataset card)" in done.stdout and "report.html" not in done.stdout
    assert sum("the pen" in line for line in done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("to", ["megatron", "parquet"])
def test_export(config_file: Callable[..., str], tmp_path: Path, to: str) -> None:
    assert thoughtmill("run", config_file()).returncode == 0
    target = str(tmp_path / to)
    assert "files" in thoughtmill("export", str(tmp_path / "out"), "--to", to, "--target", target).stdout
    again = thoughtmill("export", str(tmp_path / "out"), "--to", to, "--target", target)
    assert again.returncode == 0 and "there already" in again.stdout
    for wrong in (["--to", "csv"], ["--to", to, "--loss-mask", "none"], ["--to", to, "--split", "test"]):
        refused = thoughtmill("export", str(tmp_path / "out"), "--target", target, *wrong)
        assert refused.returncode == 2 and "Traceback" not in refused.stderr, refused.stderr


def test_verify_notices_any_changed_byte(config_file: Callable[..., str], tmp_path: Path) -> None:
    assert thoughtmill("run", config_file()).returncode == 0
    shard = next((tmp_path / "out" / "data").glob("*.arrow"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    checked = thoughtmill("verify", str(tmp_path / "out"), "--json")
    assert checked.returncode == 1
    [problem] = json.loads(checked.stdout)["problems"]
    assert shard.name in problem["where"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["run", "absent.yaml"], 2, "absent.yaml"),
        (["run", "{config}", "--set", "pack.sequence_length=7"], 2, "pack.sequence_length"),
        (["run", "{config}", "--set", "nonsense"], 2, "--set"),
        (["run", "{config}", "--", "--no_such_option=1"], 2, "no_such_option"),
        (["run", "{config}", "--", "stray"], 2, "stray"),
        (["run", "{config}", "--set", "source.path=/nowhere/*.jsonl"], 2, "source.path"),
        (["run", "{config}", "--set", "tokenizer=./no-such-folder"], 1, "no-such-folder"),
        (["run", "{config}", "--set", "budget.thinking_tokens_per_source_token=1e6"], 2, "thinking_tokens_per_source"),
        (["pack", "{config}"], 1, "thoughtmill score"),
        (["verify", "{tmp}/nothing"], 1, "nothing"),
        (["status", "{tmp}/nothing"], 1, "nothing"),
        (["models", "fetch", "gpt-5"], 2, "smollm2-135m-instruct"),
        (["init", "{config}"], 2, "exists"),
        (["init", "{tmp}/new.yaml", "--example", "nope"], 2, "rehearsal"),
        (["nonsense"], 2, "nonsense"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_message_and_an_exit_code(
    config_file: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    filled = [a.replace("{config}", config_file()).replace("{tmp}", str(tmp_path)) for a in arguments]
    monkeypatch.setattr(sys, "argv", ["thoughtmill", *filled])
    # The logging of this process is the test runner's.
    monkeypatch.setattr(cli, "set_up_logging", lambda debug: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    complained = capfd.readouterr().err
    assert ended.value.code == code, complained
    assert said in complained
    assert "Traceback" not in complained and len(complained.splitlines()) < 12


@pytest.mark.slow
def test_init_writes_an_example_that_runs(tmp_path: Path, write_jsonl: Callable[..., str], byte_tokenizer: str) -> None:
    (tmp_path / "raw").mkdir()
    write_jsonl([{"text": f"Some text number {i}. " * 200} for i in range(5)], name="raw/a.jsonl")
    assert thoughtmill("init", "mill.yaml", "--example", "rehearsal", cwd=tmp_path).returncode == 0
    done = thoughtmill("run", "mill.yaml", "--set", f"tokenizer={byte_tokenizer}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert thoughtmill("verify", "out/rehearsal", cwd=tmp_path).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [1, 4])
def test_an_output_that_takes_no_more_leaves_nothing_that_looks_finished(
    config_file: Callable[..., str], tmp_path: Path, kilobytes: int
) -> None:
    # A limit on the size of files fails the way a full disk does: write() raises an OSError in the middle of a file.
    config = config_file(pack={"sequence_length": 8192, "num_shards": 1, "zstd_level": 1})
    command = f"ulimit -f {kilobytes}; exec {' '.join(THOUGHTMILL)} run {config}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "cannot write" in done.stderr and str(tmp_path / "out") in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert thoughtmill("verify", str(tmp_path / "out")).returncode == 1
    # With room again, the same command finishes.
    assert thoughtmill("run", config).returncode == 0
    assert thoughtmill("verify", str(tmp_path / "out")).returncode == 0


@pytest.mark.slow
def test_a_broken_input_is_one_message(config_file: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"id": "1", "text": "some text"}\n' * 5000)[:100])
    done = thoughtmill("run", config_file(), "--set", f"source.path={tmp_path / 'cut.jsonl.gz'}")
    assert done.returncode == 1 and "cut.jsonl.gz" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "_SUCCESS").exists()


@pytest.mark.parametrize(("level", "expected"), [("CRITICAL", 50), ("INFO", 20), ("as loud as it gets", 0), ("", 0)])
def test_the_processes_of_an_engine_are_as_quiet_as_they_are_told(level: str, expected: int) -> None:
    code = "import logging, pipelines.cli; print(logging.getLogger('vllm').level)"
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": level}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert int(done.stdout) == expected


def test_the_version() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    done = thoughtmill("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"thoughtmill {project['version']}\n", "")


def test_python_m_thoughtmill_is_the_same_command(tmp_path: Path) -> None:
    here = str(Path(__file__).parent.parent)
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "PYTHONPATH": here}
    for words in (["--version"], ["status", "nowhere"], ["run"]):
        command = [sys.executable, "-m", "thoughtmill", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
        same = thoughtmill(*words, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (same.returncode, same.stdout)
        assert done.stderr == same.stderr.replace("pipelines.cli", "thoughtmill").replace(
            "cli.py", "python -m thoughtmill"
        )


def test_help_is_instant_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, time; import pipelines.cli, typer.testing; "
        "r = typer.testing.CliRunner().invoke(pipelines.cli.app, ['--help']); assert r.exit_code == 0; "
        "heavy = {'torch', 'vllm', 'apache_beam', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules); "
        "print(sorted(heavy)); print(time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy, elapsed_s = done.stdout.split("\n")[:2]
    assert heavy == "[]"
    # Of the processor, the start of Python included: other work on the machine doesn't count.
    assert float(elapsed_s) < 0.5
