"""The fixed job gives the same bytes on every runner that this machine has; those it hasn't are skipped, saying why."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from apache_beam.version import __version__ as beam_version

from pipelines import conformance

ROOT = Path(__file__).parent.parent
CACHE = Path.home() / ".apache_beam" / "cache"

ALWAYS = {
    "multi_processing with 2 workers": ["--direct_num_workers=2", "--direct_running_mode=multi_processing"],
    "multi_processing with 4 workers": ["--direct_num_workers=4", "--direct_running_mode=multi_processing"],
    "portable job API": ["--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK"],
}


def run(tmp_path: Path, options: list[str]) -> subprocess.CompletedProcess[str]:
    """The conformance command, run outside the checkout."""
    return subprocess.run(
        [sys.executable, "-m", "pipelines.conformance", f"--output={tmp_path / 'check'}", *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def assert_same(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr[-4000:]
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["same"] and last["files"] > 8


@pytest.mark.slow
@pytest.mark.parametrize("options", ALWAYS.values(), ids=ALWAYS)
def test_the_same_bytes(tmp_path: Path, options: list[str]) -> None:
    assert_same(run(tmp_path, options))


def found(variable: str, cached: str) -> str:
    """A runner's binary or jar: what the environment names, or what Beam has downloaded before.

    Skips the test where there is neither: a test downloads nothing.
    """
    named = os.environ.get(variable)
    if named:
        return named
    for path in sorted(CACHE.glob(cached)):
        return str(path)
    pytest.skip(f"not here: set {variable}, or put {CACHE / cached} in place")


def needs_java() -> None:
    if shutil.which("java") is None:
        pytest.skip("its job server is a jar, and there is no java on the PATH")


@pytest.mark.slow
def test_prism(tmp_path: Path) -> None:
    location = found("THOUGHTMILL_PRISM", f"prism/bin/apache_beam-v{beam_version}-prism-*")
    assert_same(run(tmp_path, ["--runner=PrismRunner", f"--prism_location={location}"]))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_spark(tmp_path: Path) -> None:
    needs_java()
    jar = found("THOUGHTMILL_SPARK_JAR", f"jars/beam-runners-spark-*job-server-{beam_version}.jar")
    options = ["--runner=SparkRunner", f"--spark_job_server_jar={jar}", "--environment_type=LOOPBACK"]
    assert_same(run(tmp_path, options))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_flink(tmp_path: Path) -> None:
    needs_java()
    jar = found("THOUGHTMILL_FLINK_JAR", f"jars/beam-runners-flink-*job-server-{beam_version}.jar")
    options = ["--runner=FlinkRunner", f"--flink_job_server_jar={jar}", "--environment_type=LOOPBACK"]
    assert_same(run(tmp_path, options))


@pytest.mark.slow
def test_a_wrong_option_is_the_callers_mistake(tmp_path: Path) -> None:
    done = run(tmp_path, ["--no_such_option=1"])
    assert done.returncode == 2
    assert "no_such_option" in done.stderr
    assert not done.stdout


def test_what_differs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = iter([{"pack/a": "1", "pack/b": "2", "pack/c": "3"}, {"pack/a": "1", "pack/b": "x", "pack/d": "4"}])
    monkeypatch.setattr(conformance, "mill", lambda *_, **__: {})
    monkeypatch.setattr(conformance, "fingerprints", lambda _: next(runs))
    assert conformance.main([f"--output={tmp_path}", "--runner=Pretend"]) == 1
    said = capsys.readouterr()
    last = json.loads(said.out.splitlines()[-1])
    assert (last["same"], last["different"], last["missing"]) == (False, ["pack/b"], ["pack/c", "pack/d"])
    assert "pack/b" in said.err
