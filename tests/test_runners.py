"""The documented options are options, each is explained, and the examples say what the page says."""

import re
import shlex
from pathlib import Path

import pytest

from pipelines.beam_options import beam_options

PAGE = Path(__file__).parent.parent / "docs" / "runners.md"
COMMAND = re.compile(r"```text\nthoughtmill run mill\.yaml -- (.*?)```", re.DOTALL)
COMMANDS = [shlex.split(found.replace("\\\n", " ")) for found in COMMAND.findall(PAGE.read_text())]
IN_CONFIG = re.compile(r"^#   thoughtmill run mill\.yaml -- ((?:.*\\\n#)*.*)$", re.MULTILINE)
EXAMPLES = {
    path.name: shlex.split(found.replace("\\\n#", " "))
    for path in sorted((PAGE.parent.parent / "configs").glob("*.yaml"))
    for found in IN_CONFIG.findall(path.read_text())
}


@pytest.mark.parametrize("options", COMMANDS, ids=lambda options: options[0])
def test_beam_knows_every_option(options: list[str]) -> None:
    beam_options(options)


@pytest.mark.parametrize("options", EXAMPLES.values(), ids=EXAMPLES)
def test_the_commands_in_the_examples_are_those_of_the_page(options: list[str]) -> None:
    """By their options: values differ, and the page has more."""
    [whole] = [command for command in COMMANDS if options[0] in command]
    names = [{word.partition("=")[0] for word in command} for command in (options, whole)]
    assert names[0] <= names[1]
    beam_options(options)


def test_there_are_such_examples() -> None:
    assert {"dataflow.yaml", "spark.yaml"} <= set(EXAMPLES)


@pytest.mark.parametrize("options", COMMANDS, ids=lambda options: options[0])
def test_every_option_is_explained(options: list[str]) -> None:
    explained = set(re.findall(r"^\| `--(\w+)", PAGE.read_text(), re.MULTILINE))
    assert {word.removeprefix("--").partition("=")[0] for word in options} <= explained


def test_all_runners_are_there() -> None:
    assert len(COMMANDS) >= 6
    for runner in ("PrismRunner", "FlinkRunner", "SparkRunner", "DataflowRunner", "PortableRunner"):
        assert any(f"--runner={runner}" in options for options in COMMANDS), runner
