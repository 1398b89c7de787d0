"""What people and CI start: each command of the workflows exists, and the linters are the same everywhere."""

import itertools
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.beam_options import beam_options

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def steps(workflow: Path) -> list[str]:
    """The commands of a workflow, with each combination of its matrix filled in."""
    commands: list[str] = []
    for job in yaml.safe_load(workflow.read_text())["jobs"].values():
        matrix = dict(job.get("strategy", {}).get("matrix", {}))
        rows: list[dict[str, Any]] = matrix.pop("include", None) or [
            dict(zip(matrix, values, strict=True)) for values in itertools.product(*matrix.values())
        ]
        for step, row in itertools.product(job["steps"], rows):
            if "run" in step:
                commands.append(re.sub(r"\$\{\{ matrix\.(\w+) \}\}", lambda name, row=row: row[name[1]], step["run"]))
    return commands


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_the_commands_of_a_workflow_exist(workflow: Path) -> None:
    commands = steps(workflow)
    assert commands
    for command in commands:
        assert "${{" not in command
        program, *words = command.split()
        if program == "make":
            done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        else:
            assert (ROOT / words[0]).exists() or (program, words[1]) == (
                ".venv/bin/python",
                "pipelines.tools.conformance",
            )


def test_clusters_are_tried_with_the_fixed_job_and_a_larger_one() -> None:
    make = ["make", "--no-print-directory", "-o", "install", "clusters"]
    nothing = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=False)
    assert nothing.returncode and "name a job server: SPARK_JAR=FILE, FLINK_JAR=FILE or JOB_ENDPOINT=" in nothing.stderr
    named = ["SPARK_JAR=spark.jar", "FLINK_JAR=flink.jar", "JOB_ENDPOINT=localhost:8099", "CLUSTER_DOCUMENTS=300"]
    done = subprocess.run([*make, "-n", *named], cwd=ROOT, capture_output=True, text=True, check=True)
    commands = [shlex.split(line) for line in done.stdout.splitlines() if "tools.conformance" in line]
    servers = {
        "SparkRunner": "--spark_job_server_jar=spark.jar",
        "FlinkRunner": "--flink_job_server_jar=flink.jar",
        "PortableRunner": "--job_endpoint=localhost:8099",
    }
    expected = [
        [*larger, f"--runner={runner}", server, "--environment_type=LOOPBACK"]
        for runner, server in servers.items()
        for larger in ([], ["--documents=300"])
    ]
    assert [words[3:] for words in commands] == expected
    for words in commands:
        assert words[:3] == [".venv/bin/python", "-m", "pipelines.tools.conformance"]
        beam_options([word for word in words[3:] if not word.startswith("--documents")])


def test_the_workflows_see_every_python_and_both_ends() -> None:
    commands = {command for workflow in WORKFLOWS for command in steps(workflow)}
    pythons = [f"make {target} PYTHON=python3.{minor}" for target in ("lint", "test-fast") for minor in (11, 12, 13)]
    assert {*pythons, "bash .ci/run", "make test-lowest PYTHON=python3.11"} <= commands
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert requires == ">=3.11"


def test_the_linters_before_a_commit_are_those_of_make_lint() -> None:
    said = subprocess.run(
        ["make", "-n", "--no-print-directory", "lint", "-o", "install"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    [repository] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["entry"] for hook in repository["hooks"]] == said[-4:]
    assert len(repository["hooks"]) == len(said) == 4


def test_ci_runs_the_commands_of_the_readme() -> None:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    promised = {line.partition("#")[0].strip() for block in blocks for line in block.splitlines()}
    run = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith(("make", ".venv"))]
    assert set(run) <= promised and {"make lint", "make demo", "make test"} <= set(run)


def test_what_contributing_points_at_is_there() -> None:
    rows = re.findall(r"^\| .*", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`([\w.-]+/[\w./-]*)`", row)]
    assert len(named) > 8
    assert [name for name in named if not (ROOT / name).exists()] == []
    targets = [name for row in rows for name in re.findall(r"`make ([\w-]+)`", row)]
    assert len(targets) > 6
    subprocess.run(["make", "-n", *targets], cwd=ROOT, capture_output=True, check=True)
