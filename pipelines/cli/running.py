"""Commands that plan and run: run, the four stages, plan, arms."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from pipelines.cli.application import (
    DEBUG,
    BeamArgument,
    ConfigArgument,
    DrainOption,
    ForceOption,
    JsonOption,
    QuietOption,
    ReplaceOption,
    RoundOption,
    SetOption,
    WorkersOption,
    app,
    begun,
    can_go_on,
    err,
    load,
    out,
)
from sharding.errors import MillError

if TYPE_CHECKING:
    from pipelines.config import MillConfig
    from pipelines.stage import Did
    from sharding.storage.manifest import Manifest


def _command(name: str, stages: tuple[str, ...], about: str) -> None:
    @app.command(name, help=about)
    def command(
        config: ConfigArgument,
        beam_args: BeamArgument = None,
        overrides: SetOption = None,
        workers: WorkersOption = None,
        round_number: RoundOption = 1,
        replace: ReplaceOption = False,
        force: ForceOption = False,
        drain_seconds: DrainOption = None,
        quiet: QuietOption = False,
    ) -> None:
        _run(
            config,
            stages,
            beam_args,
            _with_drain(overrides, drain_seconds),
            workers,
            round_number,
            replace=replace,
            force=force,
            quiet=quiet,
        )


_STAGES = {
    "score": "Stage 1: cut documents into segments and score every token.",
    "augment": "Stage 2: spend the thinking budget and generate traces.",
    "select": "Stage 3: keep the traces that pass the gates.",
    "pack": "Stage 4: pack documents and thoughts into shards.",
}

_command("run", tuple(_STAGES), "Run all four stages; those that are done are skipped.")
for _name, _about in _STAGES.items():
    _command(_name, (_name,), _about)


def _with_drain(overrides: list[str] | None, drain_seconds: float | None) -> list[str]:
    return [*(overrides or ()), *([] if drain_seconds is None else [f"feeding.drain_seconds={drain_seconds}"])]


def _run(
    path: str,
    stages: tuple[str, ...],
    beam_args: list[str] | None,
    overrides: list[str] | None,
    workers: str | None,
    round_number: int,
    *,
    replace: bool,
    force: bool,
    quiet: bool,
) -> None:
    command = f"{'run' if len(stages) > 1 else stages[0]} {path}" + _of_round(round_number)
    if not quiet:
        begun(command)
    config = load(path, overrides, round_number)
    can_go_on(command, config.ledger_url)
    if config.round is not None and not quiet:
        err.print(Text(f"a round after {config.round.of}, in {config.output}"), style="dim", soft_wrap=True)

    from pipelines.cli import summary
    from pipelines.run import mill
    from pipelines.watch.progress import Progress
    from pipelines.workers import parse

    anything = False

    def on_stage(stage: str, manifest: Manifest | None, did: Did | None) -> None:
        nonlocal anything
        progress.stage(stage if manifest is None else None)
        anything = anything or did != "nothing"
        if not quiet:
            said = "..." if manifest is None else told(stage, manifest, did)
            err.print(Text.assemble((stage, "bold"), f" {said}"), style="dim" if manifest is None else "")
            for warning in _warnings(config, stage, manifest) if manifest is not None else ():
                err.print(Text.assemble(("warning", "yellow"), f" {warning}"), soft_wrap=True)

    with Progress(config.output, err, quiet=quiet) as progress:
        mill(
            config,
            stages=stages,
            beam_args=beam_args or (),
            workers=None if workers is None else parse(workers),
            replace=replace,
            force=force,
            on_stage=on_stage,
            say=partial(err.print, soft_wrap=True),
        )
    if "pack" in stages:
        write_report(config.output, again=anything)
        out.print(summary.render(config.output, config.select.min_kept_share, config.select.diversity))
        if not anything:
            out.print("Everything was done already; nothing was run.")
        out.lost = None  # the corpus is there, whether or not this could be said


def _of_round(number: int) -> str:
    """What of a command says which round it is."""
    return "" if number == 1 else f" --round {number}"


def _warnings(config: MillConfig, stage: str, manifest: Manifest) -> list[str]:
    """What whoever waits for a stage should know of it."""
    from pipelines.cli import summary
    from pipelines.documents.quarantine import barren_files

    if stage == "score":
        return list(barren_files(manifest))
    if stage == "select":
        return summary.selection_warnings(manifest, config.select.min_kept_share, config.select.diversity)
    return []


def told(stage: str, manifest: Manifest, did: Did | None) -> str:
    """What became of a stage, in words."""
    if did == "ran":
        known = (manifest.facts.get("reused") or {}).get("tokens", 0)
        reused = f"; {known:,} of its {manifest.counts['source_tokens']:,} tokens were scored before" if known else ""
        return f"done in {manifest.elapsed_s:,.1f} s{reused}"
    if did == "revised":
        return "had its card written anew; the shards are untouched" if stage == "pack" else "is where it is lent now"
    return "was done already"


def write_report(output: str, *, again: bool) -> None:
    """Write the page about a finished run, where it isn't there or no longer true."""
    from pipelines import report

    try:
        if again or not report.is_there(output):
            report.write(output)
    except Exception as error:
        # Whatever it is, it is not worth a finished run.
        if DEBUG["on"]:
            logging.exception("the report could not be written")
        said = f" no report: {str(error) or repr(error)}; `thoughtmill report {output}` tries again"
        err.print(Text.assemble(("warning", "yellow"), said))


@app.command()
def plan(
    config: ConfigArgument,
    beam_args: BeamArgument = None,
    pilot: Annotated[
        int, typer.Option(min=0, help="Generate so many segments, into the run's ledger, and measure them.")
    ] = 0,
    explore: Annotated[
        bool,
        typer.Option("--explore", help="The pilot tries every tier on segments of every kind, and learns what pays."),
    ] = False,
    tries: Annotated[
        int | None, typer.Option(min=1, help="With --explore: so many of the tiers on each segment, at random; all.")
    ] = None,
    sample_documents: Annotated[
        int, typer.Option(min=1, help="Documents scored to stand for a source that isn't scored yet.")
    ] = 64,
    accelerators: Annotated[int, typer.Option(min=1, help="Accelerators that generate at the same time.")] = 1,
    overrides: SetOption = None,
    round_number: RoundOption = 1,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Tell what a run will take: segments, tokens, GPU-hours, money, bytes, before anything is bought."""
    if not (quiet or as_json):
        begun(f"plan {config}{_of_round(round_number)}")
    from pipelines import plan as plan_module
    from pipelines.plan import show
    from pipelines.watch.progress import Progress

    mill_config = load(config, overrides, round_number)
    if pilot:
        command = f"plan {config} --pilot {pilot}{' --explore' * explore}{_of_round(round_number)}"
        can_go_on(command, mill_config.ledger_url)
    with Progress(mill_config.output, err, quiet=quiet or as_json, publish=False) as progress:
        progress.stage("plan")
        made = plan_module.make_plan(
            mill_config,
            sample_documents=sample_documents,
            accelerators=accelerators,
            pilot=pilot,
            explore=explore,
            tries=tries,
            beam_args=beam_args or (),
            say=err.print,
        )
        progress.stage(None)
    if as_json:
        out.print_json_line(made)
    else:
        out.print(show.render(made))
    if pilot and made["nothing_kept"]:
        raise MillError(
            "plan --pilot: no segment of the pilot keeps a thought, and a run would end so: see the warning; what was "
            "generated is in the ledger, and another `select` section is measured on it without generating"
        )


@app.command()
def arms(
    config: ConfigArgument,
    beam_args: BeamArgument = None,
    names: Annotated[
        str | None,
        typer.Option(
            "--arms",
            help="Some of those in docs/mixing.md; raw is always made. Unless told otherwise: raw, uniform, adaptive, "
            "rephrase, and learned where a pilot has explored.",
        ),
    ] = None,
    overrides: SetOption = None,
    replace: ReplaceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make control arms: corpora of equal length without thoughts and with them, ready to be compared in training."""
    if not quiet:
        begun(f"arms {config}")
    from pipelines.arms import mill_arms
    from pipelines.arms.kinds import arm_config
    from pipelines.arms.result import render
    from pipelines.card.facts import REHEARSAL_NOTICE
    from pipelines.watch.progress import Progress

    mill_config = load(config, overrides)
    can_go_on(f"arms {config}", mill_config.ledger_url)

    def on_stage(arm: str, stage: str, manifest: Manifest | None, did: Did | None) -> None:
        output = arm_config(mill_config, arm).output if arm else None
        progress.stage(stage if manifest is None else None, of=arm, output=output)
        if manifest is not None and not quiet:
            name = f"{arm}: {stage}" if arm else stage
            err.print(Text.assemble((name, "bold"), f" {told(stage, manifest, did)}"))

    with Progress(mill_config.output, err, quiet=quiet, publish=False) as progress:
        results = mill_arms(
            mill_config,
            None if names is None else [name.strip() for name in names.split(",") if name.strip()],
            beam_args=beam_args or (),
            replace=replace,
            on_stage=on_stage,
        )
    out.print("", render(results))
    if any(arm.rehearsal for arm in results.values()):
        out.print(Text(REHEARSAL_NOTICE, "yellow"))
    out.lost = None  # all of it is in arms.json
