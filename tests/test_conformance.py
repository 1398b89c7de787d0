"""The fixed job gives the same bytes on every runner that this machine has; those it hasn't are skipped, saying why.

All of it runs from an installed wheel, outside the checkout: that is how it is used elsewhere.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import distribution
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import yaml
from apache_beam.version import __version__ as beam_version
from packaging.requirements import Requirement

from pipelines.tools import conformance
from sharding.errors import MillError, RequestError
from tests.clean_install import MODULES, PROJECT, ROOT, TOPS, environment_with, run

CACHE = Path.home() / ".apache_beam" / "cache"
LOOPBACK = ["--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK"]

ALWAYS = {
    "multi_processing with 2 workers": ["--direct_num_workers=2", "--direct_running_mode=multi_processing"],
    "multi_processing with 4 workers": ["--direct_num_workers=4", "--direct_running_mode=multi_processing"],
    "portable job API": LOOPBACK,
}


def asked_for(lines: list[str]) -> set[str]:
    """The distributions here that requirements bring in: they and all that they require."""
    seen: set[tuple[str, str]] = set()
    todo = [(Requirement(line), "") for line in lines]
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        for wanted in {"", *requirement.extras}:
            if (requirement.name, wanted) not in seen:
                seen.add((requirement.name, wanted))
                required = distribution(requirement.name).requires or ()
                todo += [(Requirement(line), wanted) for line in required]
    return {name for name, _ in seen}


@pytest.fixture(scope="module")
def core(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that has the wheel and what `pip install .` brings with it, and nothing else."""
    bin_folder, site = environment_with(wheel, tmp_path_factory.mktemp("core"))
    for name in asked_for(PROJECT["project"]["dependencies"]):
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(found.locate_file(top))))
    return bin_folder


def check(installed: Path, folder: Path, options: list[str]) -> subprocess.CompletedProcess[str]:
    return run(
        [str(installed / "python"), "-m", "pipelines.tools.conformance", f"--output={folder / 'check'}", *options],
        folder,
    )


def assert_same(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr[-4000:]
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["same"] and last["files"] > 8


@pytest.mark.slow
@pytest.mark.parametrize("options", ALWAYS.values(), ids=ALWAYS)
def test_the_same_bytes(installed: Path, tmp_path: Path, options: list[str]) -> None:
    assert_same(check(installed, tmp_path, options))


@pytest.mark.slow
def test_the_wheel_has_everything(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    ours = {
        path.relative_to(ROOT).as_posix()
        for top in TOPS
        for path in (ROOT / top).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    ours |= set(MODULES)
    ours |= {f"pipelines/example_configs/{path.name}" for path in (ROOT / "configs").iterdir()}
    assert not ours - names, "a package or its data is missing in pyproject.toml"
    beside = {name for name in names - ours if ".dist-info/" not in name}
    assert not beside, "what is no part of the package is in it"


def rehearsal(installed: Path, folder: Path) -> Callable[..., str]:
    """Runs `thoughtmill` with the words given, in a folder with the config mill.yaml, and gives what it says."""

    def said(*words: str | Path) -> str:
        done = run([str(word) for word in words], folder)
        assert done.returncode == 0, f"{words}: {done.stderr[-4000:]}"
        return done.stdout

    where = said(installed / "python", "-c", "import pipelines, sharding; print(pipelines.__file__)")
    assert Path(where.strip()).is_relative_to(installed.parent), "the checkout is what was imported"
    mill = partial(said, installed / "thoughtmill")
    version = f"thoughtmill {PROJECT['project']['version']}\n"
    assert mill("--version") == said(installed / "python", "-m", "thoughtmill", "--version") == version
    mill("init", "mill.yaml", "--example", "rehearsal")
    conformance.train_tokenizer(folder / "tokenizer")
    lines = [json.dumps({"id": str(i), "text": f"Document {i} says this. " * 40}) for i in range(6)]
    (folder / "source.jsonl").write_text("\n".join(lines))
    config = yaml.safe_load((folder / "mill.yaml").read_text())
    config |= {"source": {"path": "source.jsonl", "id_field": "id"}, "output": "out", "tokenizer": "tokenizer"}
    (folder / "mill.yaml").write_text(yaml.safe_dump(config))
    return mill


LOOKS = [["verify", "out", "--deep"], ["status", "out"], ["report", "out"], ["inspect", "out"]]


@pytest.mark.slow
def test_the_command_line_of_the_wheel(installed: Path, tmp_path: Path) -> None:
    """`thoughtmill run CONFIG -- --runner=...`, with everything it reads from the wheel or from here."""
    mill = rehearsal(installed, tmp_path)
    for words in (["run", "mill.yaml", "--", *LOOPBACK], *LOOKS):
        mill(*words)


@pytest.mark.slow
def test_the_core_needs_no_extra(core: Path, tmp_path: Path) -> None:
    """What docs/install.md promises of `pip install .`: everything but models and stores."""
    extras = "import importlib.util as u; print(*filter(u.find_spec, ['torch', 'transformers', 'datasets', 's3fs']))"
    assert run([str(core / "python"), "-c", extras], tmp_path).stdout == "\n"
    mill = rehearsal(core, tmp_path)
    for stage in ("plan", "score", "augment", "select", "pack", "run", "arms"):
        mill(stage, "mill.yaml")
    for words in LOOKS:
        mill(*words)


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


def prism() -> str:
    """Prism's binary, from `make prism` if nothing else is named; where CI has Go, there must be one."""
    built = Path(sys.prefix) / f"prism-{beam_version}" / "prism"
    if built.is_file() and "THOUGHTMILL_PRISM" not in os.environ:
        return str(built)
    try:
        return found("THOUGHTMILL_PRISM", f"prism/bin/apache_beam-v{beam_version}-prism-*")
    except pytest.skip.Exception as nothing:
        if os.environ.get("CI") and shutil.which("go"):
            pytest.fail(f"CI has Go and no Prism: `make prism` makes {built}")
        raise pytest.skip.Exception(f"{nothing}, or run `make prism`") from None


def needs_java() -> None:
    if shutil.which("java") is None:
        pytest.skip("its job server is a jar, and there is no java on the PATH")


@pytest.mark.slow
def test_prism(installed: Path, tmp_path: Path) -> None:
    """All four stages, of three times the fixed job's corpus."""
    larger = ["--documents=120", "--runner=PrismRunner", f"--prism_location={prism()}"]
    assert_same(check(installed, tmp_path, larger))


@pytest.mark.slow
def test_prism_with_a_pool_of_workers(installed: Path, tmp_path: Path) -> None:
    """As docs/runners.md starts one: worker processes of their own, which the pool starts by `python` from PATH."""
    server = prism()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    module = "apache_beam.runners.worker.worker_pool_main"
    environment = os.environ | {"PATH": f"{installed}{os.pathsep}{os.environ['PATH']}"}
    pool = subprocess.Popen(
        ["python", "-m", module, f"--service_port={port}"], env=environment, cwd=tmp_path,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        options = ["--runner=PrismRunner", f"--prism_location={server}", "--environment_type=EXTERNAL"]
        pooled = [*options, f"--environment_config=localhost:{port}"]
        done = check(installed, tmp_path, pooled)
        if "no worker came to it" in done.stderr:  # Prism waits a minute for one to start: a machine may be busier
            done = check(installed, tmp_path, pooled)
        assert_same(done)
    finally:
        os.killpg(pool.pid, signal.SIGKILL)
        pool.wait()


def test_where_ci_has_go_prism_is_not_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THOUGHTMILL_PRISM", raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys.modules[__name__], "CACHE", tmp_path)
    (tmp_path / "go").touch(mode=0o755)
    for go, ci, outcome in (("here", "true", pytest.fail), ("here", "", pytest.skip), ("", "true", pytest.skip)):
        monkeypatch.setenv("PATH", str(tmp_path) if go else "/nowhere")
        monkeypatch.setenv("CI", ci)
        with pytest.raises(outcome.Exception, match="make prism"):
            prism()
    (tmp_path / f"prism-{beam_version}").mkdir()
    (tmp_path / f"prism-{beam_version}" / "prism").touch()
    assert prism() == str(tmp_path / f"prism-{beam_version}" / "prism")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_spark(installed: Path, tmp_path: Path) -> None:
    needs_java()
    jar = found("THOUGHTMILL_SPARK_JAR", f"jars/beam-runners-spark-*job-server-{beam_version}.jar")
    options = ["--runner=SparkRunner", f"--spark_job_server_jar={jar}", "--environment_type=LOOPBACK"]
    assert_same(check(installed, tmp_path, options))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_flink(installed: Path, tmp_path: Path) -> None:
    needs_java()
    jar = found("THOUGHTMILL_FLINK_JAR", f"jars/beam-runners-flink-*job-server-{beam_version}.jar")
    options = ["--runner=FlinkRunner", f"--flink_job_server_jar={jar}", "--environment_type=LOOPBACK"]
    assert_same(check(installed, tmp_path, options))


@pytest.mark.slow
def test_a_wrong_option_is_the_callers_mistake(installed: Path, tmp_path: Path) -> None:
    done = check(installed, tmp_path, ["--no_such_option=1"])
    assert done.returncode == 2
    assert "no_such_option" in done.stderr
    assert not done.stdout


def test_the_job_has_as_many_documents_as_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    few, many = conformance.job_documents(40), conformance.job_documents(300)
    assert len(few) == 46 and len(many) == 306
    assert many[:43] == few[:43], "the larger job has the pages of the fixed one"
    put_together = {document["text"] for document in many[3 + len(topics) : 303]}
    assert many == conformance.job_documents(300) and len(put_together) == 300 - len(topics) > 100
    assert max(len(document["text"]) for document in many) < conformance.MAX_CHARACTERS + 100
    for wrong in ("0", "-3", "many"):
        with pytest.raises(SystemExit) as ended:
            conformance.main([f"--documents={wrong}"])
        assert ended.value.code == 2 and f"'{wrong}' is no number above 0" in capsys.readouterr().err


def test_what_differs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = iter([{"pack/a": "1", "pack/b": "2", "pack/c": "3"}, {"pack/a": "1", "pack/b": "x", "pack/d": "4"}])
    monkeypatch.setattr(conformance, "mill", lambda *_, **__: {})
    monkeypatch.setattr(conformance, "fingerprints", lambda _: next(runs))
    assert conformance.main([f"--output={tmp_path}", "--runner=PrismRunner"]) == 1
    said = capsys.readouterr()
    last = json.loads(said.out.splitlines()[-1])
    assert (last["same"], last["different"], last["missing"]) == (False, ["pack/b"], ["pack/c", "pack/d"])
    assert "pack/b" in said.err


def test_nothing_is_compared_that_an_earlier_check_has_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs: list[str] = []
    monkeypatch.setattr(conformance, "mill", lambda config, **_: outputs.append(config.output))
    monkeypatch.setattr(conformance, "fingerprints", lambda _: {"pack/a": "1"})
    for _ in range(2):
        assert conformance.check(str(tmp_path), None, ["--runner=DirectRunner"])["same"]
    assert len(set(outputs)) == 4
    assert all(Path(output).is_relative_to(tmp_path) and not Path(output).exists() for output in outputs)


def test_a_store_needs_a_tokenizer_that_workers_can_load() -> None:
    with pytest.raises(RequestError, match="--tokenizer is needed with an --output in a store"):
        conformance.check("memory://conformance", None, [])


def test_an_error_with_brackets_is_shown_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MillError("score ([ref/Read]): [/tmp] is full")

    monkeypatch.setattr(conformance, "mill", fail)
    assert conformance.main([f"--output={tmp_path}"]) == 1
    assert "score ([ref/Read]): [/tmp] is full" in capsys.readouterr().err
