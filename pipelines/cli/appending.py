"""The command `append`: later documents become more shards of a finished corpus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from pipelines.cli.application import (
    BeamArgument,
    ConfigArgument,
    QuietOption,
    SetOption,
    app,
    begun,
    can_go_on,
    err,
    load,
    out,
)
from pipelines.cli.running import told, write_report
from pipelines.terminal import counted

if TYPE_CHECKING:
    from pipelines.append import Appended
    from pipelines.stage import Did
    from sharding.storage.manifest import Manifest


@app.command()
def append(
    config: ConfigArgument,
    source: Annotated[
        list[str],
        typer.Option(
            "--source",
            metavar="PATH",
            help="File, folder or glob of the later documents, read as the config's source is; NAME=PATH, once each, "
            "where it has several.",
        ),
    ],
    beam_args: BeamArgument = None,
    own_plan: Annotated[
        bool,
        typer.Option(
            "--own-plan",
            help="Spend the config's budget on them by a plan of their own; else tiers begin where the first's do.",
        ),
    ] = False,
    overrides: SetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Mill later documents and join them to a finished corpus, whose shards stay as they are."""
    asked = " ".join(f"--source {each}" for each in source)
    command = f"append {config} {asked}{' --own-plan' * own_plan}"
    if not quiet:
        begun(command)
    from pipelines.append import append as append_documents
    from pipelines.watch.progress import Progress
    from sharding.storage.output import Output

    mill_config = load(config, overrides)
    can_go_on(command, mill_config.ledger_url)

    def on_stage(stage: str, manifest: Manifest | None, did: Did | None) -> None:
        progress.stage(stage if manifest is None else None)
        if not quiet:
            said = "..." if manifest is None else told(stage, manifest, did)
            err.print(Text.assemble((stage, "bold"), f" {said}"), style="dim" if manifest is None else "")

    with Progress(mill_config.output, err, quiet=quiet, publish=False) as progress:
        done = append_documents(
            mill_config, source, plan="own" if own_plan else "first", beam_args=beam_args or (), on_stage=on_stage
        )
    if done.number is not None:
        write_report(mill_config.output, again=True)
    out.print(Text(_told(mill_config.output, done)))
    if done.number is not None:
        out.print(Text(f"{Output(mill_config.output).card} tells of all of it; `thoughtmill verify` checks it"))
    out.lost = None  # it has joined, whether or not this could be said


def _told(output: str, done: Appended) -> str:
    left_out = [
        f"{number:,} {what}"
        for number, what in (
            (done.delivered_before, "were delivered before"),
            (done.copies, "are copies or near-copies"),
        )
        if number
    ]
    beside = f" ({', '.join(left_out)})" if left_out else ""
    if done.number is None:
        return f"{output}: nothing of it is new{beside}; the corpus is as it was"
    return (
        f"{output}: delivery {done.number} joined with {counted(done.documents, 'document')} in "
        f"{counted(done.rows, 'sequence')}, {counted(done.shards, 'shard')}{beside}"
    )
