"""Nothing from an output, a server or a document steers a terminal, whichever command shows it. A stream that can't be
written is no end of a run.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pipelines import cli
from pipelines.cli.application import DEBUG
from pipelines.run import mill
from pipelines.terminal import Terminal, visible
from pipelines.yaml_config import from_mapping
from sharding.errors import MillError
from sharding.storage.output import Output
from tests.conftest import rehearsal_tree

ROOT = Path(__file__).parent.parent.parent

EVIL = [
    "\x1b]52;c;cm0gLXJmIH4=\x07",  # fills the clipboard
    "\x1b]0;all is well\x1b\\",  # sets the window's title
    "\x1b]8;;http://elsewhere.example\x1b\\click\x1b]8;;\x1b\\",  # a link
    "\x1b[2J\x1b[31m",
    *("\x9b2J", "\x9d0;x\x9c", "a\rb", "a\x08b", "\x00", "\x7f", "\u202eab", "\u2066x", "\u2028", "\ufeff", "\ud800"),
]
MARKUP = "[link=http://elsewhere.example]click[/link] [red]x[/red] [/]"
ALL = "".join(EVIL) + MARKUP
RICH = re.compile(r"\x1b\[[\d;]*m|\x1b\[\?25[lh]|\x1b\[1A|\x1b\[2K")


def assert_harmless(told: str) -> None:
    assert visible(RICH.sub("", told)) == RICH.sub("", told), told


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Gives what a terminal with colours has received since, of both streams."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setattr(cli, "set_up_logging", lambda debug: None)  # the logging of this process is the test runner's
    return lambda: "".join(capfd.readouterr())


def in_a_table(text: str) -> Table:
    table = Table(text, title=text)
    table.add_row(text)
    return table


@pytest.mark.parametrize("evil", EVIL)
@pytest.mark.parametrize("made", [str, Text, lambda text: Panel(text, title=Text(text)), in_a_table, Text.assemble])
def test_whatever_is_printed_is_spelled_out(terminal: Callable[[], str], made: Callable[[str], Any], evil: str) -> None:
    for soft_wrap in (True, False):
        Terminal().print(made(f"before {evil} behind {MARKUP}"), soft_wrap=soft_wrap)
    told = terminal()
    assert_harmless(told)
    assert told.count("behind") >= 2 and told.count("[red]x[/red]") >= 2, "it is there, in plain characters"


def test_no_link_of_a_style_gets_through(terminal: Callable[[], str]) -> None:
    Terminal().print(Text("click", "link http://elsewhere.example"))
    told = terminal()
    assert "click" in told and "elsewhere" not in told


@pytest.fixture(scope="module")
def crafted(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: str) -> str:
    """An output whose ids, texts, names, warnings and paths try to steer."""
    folder = tmp_path_factory.mktemp("crafted")
    id_, source = ALL.replace("\ud800", ""), folder / "in.jsonl"
    source.write_text(json.dumps({"id": id_, "text": f"A text that {id_} steers. " * 30}) + "\n")
    config = from_mapping(rehearsal_tree(folder, byte_tokenizer, str(source)))
    mill(config)
    at = Output(config.output)
    plan = json.loads(Path(at.plan).read_text())
    Path(at.plan).write_text(json.dumps(plan | {"warnings": [id_]}))
    progress = {"stage": id_, "at": 1e12, "elapsed_s": 1.0, "counts": {"documents": 1}, "generation": None}
    Path(at.progress).write_text(json.dumps(progress | {"tokens_per_second": 1.0, "warning": id_}))
    for stage in ("score", "augment", "select", "pack"):
        path = Path(at.manifest(stage))
        made = json.loads(path.read_text())
        made["facts"]["warnings"] = [id_]
        made["counts"][f"rejected.{id_}"] = made["counts"][f"quarantined.{id_}"] = 1
        for tier in made["facts"].get("tiers", []):
            tier["name"] += id_
        path.write_text(json.dumps(made))
    return config.output


@pytest.mark.parametrize(
    "command", ["verify", "verify --deep", "status", "inspect", "inspect --plain", "inspect --doc x"]
)
def test_no_command_lets_an_output_steer(
    crafted: str, terminal: Callable[[], str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("pipelines.watch.progress.STALE_S", 1e13)
    monkeypatch.setattr(sys, "argv", ["thoughtmill", *command.split(), crafted])
    with pytest.raises(SystemExit):
        cli.main()
    told = terminal()
    assert_harmless(told)
    assert "\u241b]52;c;" in told, "the test shows nothing: what would steer isn't shown"


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("kind", [MillError, ValueError])
def test_no_error_lets_a_server_steer(
    terminal: Callable[[], str], monkeypatch: pytest.MonkeyPatch, kind: type[Exception], debug: bool
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise kind(f"the server answered 500: {ALL}")

    monkeypatch.setattr("pipelines.yaml_config.load", fails)
    monkeypatch.setitem(DEBUG, "on", False)
    monkeypatch.setattr(sys, "argv", ["thoughtmill", *["--debug"] * debug, "run", "mill.yaml"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    told = terminal()
    assert_harmless(told)
    assert "\u241b]52;c;" in told and MARKUP in told
    assert ("Traceback" in told) == (debug or kind is ValueError)


LOGS = """
import logging, warnings
from pipelines.cli import logs
logs.set_up_logging(debug={debug})
evil = {evil!r}
logging.getLogger("sharding.models").warning("%s was said", evil)
logging.getLogger("elsewhere").error("%s was said", evil)
try:
    raise ValueError(evil)
except ValueError:
    logging.getLogger("sharding").exception("it failed")
for number in range(50):
    logging.getLogger("augment").warning("request %d failed", number)
warnings.warn(evil)
"""


@pytest.mark.parametrize("debug", [False, True])
def test_no_line_of_a_log_steers(debug: bool) -> None:
    evil = ALL.replace("\ud800", "")
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", LOGS.format(debug=debug, evil=evil)], capture_output=True, check=True
    )
    told = done.stderr.decode()
    assert_harmless(told)
    assert told.count("was said") == 2 and "it failed" in told and "ValueError" in told
    assert ("request 49 failed" in told) == debug and ("more of this kind" in told) != debug
    if not debug:
        assert told.startswith("warning ") and "request 8 failed" in told


def test_json_is_in_plain_characters(terminal: Callable[[], str]) -> None:
    Terminal().print_json_line({"name": ALL})
    told = terminal()
    assert_harmless(told)
    assert json.loads(told) == {"name": ALL}


# --- streams that can't be written ------------------------------------------------------------------------------------


def thoughtmill(*words: str, stdout: int, stderr: int = subprocess.PIPE, **environment: str) -> tuple[int, str]:
    """The exit code of a command and what it complained of."""
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *words],
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        check=False,
    )
    return done.returncode, (done.stderr or b"").decode()


@pytest.fixture
def unread() -> Iterator[int]:
    """A pipe that nobody reads any more."""
    reads, writes = os.pipe()
    os.close(reads)
    yield writes
    os.close(writes)


@pytest.fixture
def full() -> Iterator[int]:
    """A file on a disk without room."""
    file = os.open("/dev/full", os.O_WRONLY)
    yield file
    os.close(file)


@pytest.mark.parametrize("command", ["status", "status --json", "inspect", "verify --json"])
def test_an_end_that_nobody_reads_is_no_error(crafted: str, unread: int, command: str) -> None:
    assert thoughtmill(*command.split(), crafted, stdout=unread) == (1 if "verify" in command else 0, "")


@pytest.mark.parametrize("command", ["status", "status --json", "inspect"])
def test_an_answer_that_cannot_be_written_is_an_error(crafted: str, full: int, command: str) -> None:
    code, told = thoughtmill(*command.split(), crafted, stdout=full)
    assert (code, told) == (1, "error standard output can't be written: No space left on device\n")


def test_letters_that_an_encoding_lacks_are_spelled_out(crafted: str, tmp_path: Path) -> None:
    with (tmp_path / "told").open("wb") as file:
        assert thoughtmill("inspect", crafted, stdout=file.fileno(), PYTHONIOENCODING="ascii") == (0, "")
    assert b"\\u27e6" in (tmp_path / "told").read_bytes()


@pytest.mark.parametrize("lost", ["full", "unread"])
def test_a_log_that_is_lost_ends_no_run(
    request: pytest.FixtureRequest, tmp_path: Path, byte_tokenizer: str, lost: str
) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"id": "1", "text": "some text of no worth " * 30}) + "\n")
    tree = rehearsal_tree(tmp_path, byte_tokenizer, str(tmp_path / "in.jsonl"))
    (tmp_path / "mill.yaml").write_text(yaml.safe_dump(tree))
    stream = request.getfixturevalue(lost)
    assert thoughtmill("run", str(tmp_path / "mill.yaml"), stdout=stream, stderr=stream) == (0, "")
    assert (tmp_path / "out" / "_SUCCESS").exists()
