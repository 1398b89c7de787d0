"""The command line: `thoughtmill --help`. Commands import what they need when they run, so that help is instant."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from typing import Annotated

import typer
from rich.text import Text

from pipelines import stopping
from pipelines.cli import ablating as ablating
from pipelines.cli import appending as appending
from pipelines.cli import comparing as comparing
from pipelines.cli import dropping as dropping
from pipelines.cli import looking as looking
from pipelines.cli import making as making
from pipelines.cli import owning as owning
from pipelines.cli import removing as removing
from pipelines.cli import running as running
from pipelines.cli import serving as serving
from pipelines.cli import showing as showing
from pipelines.cli.application import DEBUG, SAFE, app, err, out
from pipelines.cli.logs import set_up_logging as set_up_logging
from pipelines.secrets import told
from sharding.errors import MillError

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


def main(program: str | None = None) -> None:
    """Entry point: our own errors become one message and an exit code."""
    with stopping.heard():
        _main(program)


def _main(program: str | None) -> None:
    try:
        app(prog_name=program)
    except stopping.Stopped as stopped:
        stopping.speak_again()
        err.print(
            Text.assemble(("stopped", "yellow bold"), told(f" by {stopping.SIGNALS[stopped.signal]}{SAFE['said']}"))
        )
        stopping.end(stopped)
    except SystemExit as ended:
        sys.exit(_finished(ended.code))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told here
        if isinstance(error, MillError) and not DEBUG["on"]:
            err.print(Text.assemble(("error", "red bold"), told(f" {error}")))
        else:  # a mistake of ours keeps its traceback, whose words may be anyone's
            err.print(told(traceback.format_exc()))
        _finished(1)
        sys.exit(error.exit_code if isinstance(error, MillError) else 1)


def _finished(code: str | int | None) -> str | int | None:
    """The exit code, once all is said: an answer that could not be written is none. `| head` is no error."""
    with out.lasting():
        if sys.stdout is not None:
            sys.stdout.flush()
    if out.lost is None:
        return code
    out.drop_rest()
    err.print(Text.assemble(("error", "red bold"), f" standard output can't be written: {out.lost.strerror}"))
    return code or 1
