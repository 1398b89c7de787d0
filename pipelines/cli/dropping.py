"""The command `ledger drop`: rows taken out of a ledger, so that a model or server that was mended is asked again."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.text import Text

from pipelines.cli.application import JsonOption, out
from pipelines.cli.making import ledger_app
from pipelines.terminal import counted


@ledger_app.command("drop")
def drop(
    ledger_url: Annotated[str, typer.Argument(metavar="LEDGER", help="The folder of a ledger, such as OUTPUT/ledger.")],
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="model=A,B, tier=NAME, reason=empty (length, cut, forced, ...), time>=2026-11-25T10:00 (UTC); != for "
            "all others. Of several, all must hold.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be taken out.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Take bad generations out of a ledger; the next run asks for them again. No run may be at work on it."""
    from augment.ledger import dropping

    done = dropping.drop(ledger_url, [dropping.parse(text) for text in where or ()], dry_run=dry_run)
    if as_json:
        print(json.dumps({**vars(done), "dry_run": dry_run}))  # noqa: T201
        return
    would, counts = "would be" if dry_run else "were", done.by if done.rows else done.present
    told = f"{ledger_url}: {done.rows:,} of {done.rows_before:,} rows {would} taken out"
    if done.rows:
        told += f", {done.thought_tokens:,} tokens that were paid for"
        told += "" if dry_run else "; they are kept beside it as dropped-*.arrow, and the next run asks for them again"
    for key, values in counts.items():
        told += f"\n  {key}{'' if done.rows else ' of what is there'}: "
        told += ", ".join(f"{value} {count:,}" for value, count in values.most_common(12))
    if done.parts_unread:
        told += f"\n  {counted(done.parts_unread, 'part')} can't be read; nothing in there was touched"
    out.print(Text(told))
