"""The command line's application, and what its commands share: arguments, options, consoles, reading the config."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from pipelines.secrets import told
from pipelines.terminal import Terminal

if TYPE_CHECKING:
    from pipelines.config import MillConfig

app = typer.Typer(
    name="thoughtmill",
    help="Mill raw text into thinking-augmented pretraining corpora.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
out = Terminal()
err = Terminal(stderr=True)
DEBUG = {"on": False}
SAFE = {"said": ""}
"""What a person is told who stops the command."""

ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="The YAML file of the run.")]
BeamArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[-- BEAM OPTIONS]", help="Options for Beam, after a `--`.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key: --set budget.policy=uniform")
]
DrainOption = Annotated[
    float | None,
    typer.Option(
        "--drain-seconds",
        min=0,
        help="On SIGTERM let requests at an engine go on for so long; the same as --set feeding.drain_seconds=SECONDS.",
    ),
]
WorkersOption = Annotated[
    str | None,
    typer.Option("--workers", metavar="N", help="Worker processes of the local runner, or auto; the config's workers."),
]
ReplaceOption = Annotated[
    bool, typer.Option("--replace", help="Make stages again that this output holds from another config.")
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Make finished stages again, from the same config too; the ledger is kept.")
]
RoundOption = Annotated[
    int,
    typer.Option(
        "--round", min=1, help="A further round of this run: scored again (set difficulty.model), with the same ledger."
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress.")]
SilentOption = Annotated[bool, typer.Option("--quiet", help="Say nothing but what fails.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
OutputArgument = Annotated[str, typer.Argument(metavar="OUTPUT", help="The output folder of a run, in any store.")]


def begun(command: str) -> None:
    """Say that a command has begun, before it imports what takes seconds on a busy machine."""
    err.print(Text(f"{told(command)} ..."), style="dim", soft_wrap=True)


def can_go_on(command: str, ledger_url: str) -> None:
    """Say, to whoever stops the command, what is safe and how to go on."""
    SAFE["said"] = (
        f": the stages that are done and the generations in {ledger_url} are safe; `thoughtmill {command}` goes on "
        "from there and buys none of them again"
    )


def load(path: str, overrides: list[str] | None, round_number: int = 1) -> MillConfig:
    """The config of a YAML file with the overrides of `--set`; that of a further round where `--round` names one."""
    from pipelines import yaml_config

    config = yaml_config.load(path, overrides or ())
    if round_number == 1:
        return config
    from pipelines.rounds import in_round

    return in_round(config, round_number)
