"""The command that trains small models on the arms: ablate."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from pipelines.cli.application import (
    BeamArgument,
    ConfigArgument,
    JsonOption,
    QuietOption,
    ReplaceOption,
    SetOption,
    app,
    begun,
    can_go_on,
    err,
    load,
    out,
)
from sharding.errors import MillError

if TYPE_CHECKING:
    from pipelines.ablation.result import Ablation
    from pipelines.stage import Did
    from sharding.storage.manifest import Manifest


@app.command()
def ablate(
    config: ConfigArgument,
    beam_args: BeamArgument = None,
    overrides: SetOption = None,
    replace: ReplaceOption = False,
    table: Annotated[bool, typer.Option("--table", help="Only show what a finished ablation came to.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train the same small model on every arm, and tell which arm takes it to a target in fewer tokens."""
    if not (quiet or as_json):
        begun(f"ablate {config}")
    from pipelines.ablation import result
    from pipelines.card.facts import REHEARSAL_NOTICE

    loaded = load(config, overrides)
    if table:
        found = result.read(loaded.output)
        if found is None:
            raise MillError(f"{loaded.output} holds no finished ablation: run `thoughtmill ablate {config}` first")
    else:
        can_go_on(f"ablate {config}", loaded.ledger_url)
        found = _ablate(loaded, beam_args, replace=replace, quiet=quiet)
    _show(found, as_json=as_json)
    if found.rehearsal and not as_json:
        out.print(Text(REHEARSAL_NOTICE, "yellow"))
    out.lost = None  # all of it is in ablation.json


def _ablate(config: Any, beam_args: list[str] | None, *, replace: bool, quiet: bool) -> Ablation:
    from pipelines import ablate as ablate_module
    from pipelines import report
    from pipelines.ablation.progress import Progress
    from sharding.storage.manifest import read

    def on_stage(arm: str, stage: str, manifest: Manifest | None, did: Did | None) -> None:
        if manifest is not None and not quiet:
            name = f"{arm}: {stage}" if arm else stage
            said = f" done in {manifest.elapsed_s:,.1f} s" if did == "ran" else " was done already"
            err.print(Text.assemble((name, "bold"), said))

    run = partial(ablate_module.ablate, config, beam_args=beam_args or (), replace=replace, on_stage=on_stage)
    if quiet:
        found = run()
    else:
        with Progress(err, config.ablation) as progress:
            found = run(on_step=progress.step)
    if read(config.output, "score") is not None:  # with `scored`, the output itself has nothing to report
        report.write(config.output)
    return found


def _show(found: Ablation, *, as_json: bool) -> None:
    import msgspec

    from pipelines.ablation import show

    if as_json:
        out.print_json_line(msgspec.to_builtins(found))
        return
    out.print("", *show.render(found))
