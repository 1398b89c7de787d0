"""The command `remove`: documents are taken down from an output, and don't come back."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from pipelines.cli.application import SAFE, JsonOption, OutputArgument, SilentOption, app, begun, err, out
from pipelines.terminal import counted

if TYPE_CHECKING:
    from pipelines.takedown import Removed

_SHOWN = 5


@app.command()
def remove(
    output: OutputArgument,
    ids: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help='The documents: an id a line, or JSON lines of {"id": ...}. None: finish what was begun.',
        ),
    ] = None,
    missing_ok: Annotated[
        bool, typer.Option("--missing-ok", help="It is no error that none of them is there.")
    ] = False,
    ledger: Annotated[
        str | None, typer.Option(metavar="LEDGER", help="The folder of the ledger, where that is not in the output.")
    ] = None,
    as_json: JsonOption = False,
    quiet: SilentOption = False,
) -> None:
    """Take documents out of an output, its ledger and its report for good; later runs leave them out."""
    if not (as_json or quiet):
        begun(f"remove {output}")
    from pipelines import takedown
    from pipelines.takedown.ids import read_ids

    SAFE["said"] = f": nothing is lost; the same command goes on, or `thoughtmill remove {output}` to what was begun"

    done = takedown.remove(output, read_ids(ids) if ids is not None else None, missing_ok=missing_ok, ledger_url=ledger)
    _write_report(output)
    if as_json:
        out.print_json_line(dataclasses.asdict(done))
        return
    if not quiet:
        out.print(Text(_told(output, done)))
    if done.unknown:
        shown = ", ".join(map(repr, done.unknown[:_SHOWN])) + (", ..." if len(done.unknown) > _SHOWN else "")
        said = f" {len(done.unknown):,} ids are not in the output, and later runs leave them out: {shown}"
        err.print(Text.assemble(("warning", "yellow"), said), soft_wrap=True)


def _told(output: str, done: Removed) -> str:
    said = "an earlier removal was finished first; " if done.finished else ""
    said += f"{output}: {counted(done.documents, 'document')} removed, {counted(done.files, 'file')} made anew"
    said += f", {done.shards:,} of them shards" if done.shards else ""
    said += f"; {done.already:,} had been removed before" if done.already else ""
    if (ledger := done.ledger) is not None:
        said += f"\nledger: {ledger.rows + ledger.strangers:,} rows left it"
        said += f", {ledger.strangers:,} of them of other configs or runs" if ledger.strangers else ""
        said += f"; {ledger.renamed:,} stay for another document of the same text" if ledger.renamed else ""
        said += f"; {ledger.parts_unread:,} parts can't be read and are as they were" if ledger.parts_unread else ""
    if done.search_index:
        said += f"\nsearch server: the index {done.search_index} may hold their text; delete it there"
    return said


def _write_report(output: str) -> None:
    """Write the page about the run anew: the old one, which may have shown the documents, is gone."""
    from pipelines import report
    from sharding.errors import MillError

    try:
        report.write(output)
    except MillError as error:
        said = f" no report: {error}; `thoughtmill report {output}` tries again"
        err.print(Text.assemble(("warning", "yellow"), said))
