"""The command line: `thoughtmill --help`. Commands import what they need when they run, so that help is instant."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Annotated

import typer
from rich.markup import escape

from pipelines.cli import dropping as dropping
from pipelines.cli import looking as looking
from pipelines.cli import making as making
from pipelines.cli import running as running
from pipelines.cli.application import DEBUG, app, err, out
from sharding.errors import MillError

NOISY_LOGGERS = ("apache_beam", "vllm", "transformers", "httpx")
QUIET_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "CRITICAL",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
"""What keeps the processes of an engine quiet, unless the user has set it."""

# vLLM warns before it looks at this setting. Its processes begin with the main module of the process that starts them.
if (level := os.environ.get("VLLM_LOGGING_LEVEL")) in logging.getLevelNamesMapping():
    logging.getLogger("vllm").setLevel(str(level))


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        out.print(f"thoughtmill {version('thoughtmill')}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show logs and the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options before the command."""
    DEBUG["on"] = debug
    set_up_logging(debug)


def set_up_logging(debug: bool) -> None:
    """Logs on standard error: all of them, or what no message of ours tells."""
    logging.basicConfig(level=logging.INFO if debug else logging.ERROR, stream=sys.stderr)
    if not debug:
        # A failure reaches the user as one message; these would tell it as pages of traceback.
        for name in NOISY_LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        for name, value in QUIET_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        warnings.simplefilter("ignore")


def main(program: str | None = None) -> None:
    """Entry point: our own errors become one message and an exit code."""
    try:
        app(prog_name=program)
    except MillError as error:
        if DEBUG["on"]:
            raise
        err.print(f"[red bold]error[/red bold] {escape(str(error))}")
        sys.exit(error.exit_code)
