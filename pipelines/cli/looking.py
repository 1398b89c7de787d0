"""Commands that look and change nothing: check a config; verify, status, report, inspect an output."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.cli.application import (
    BeamArgument,
    ConfigArgument,
    JsonOption,
    OutputArgument,
    QuietOption,
    RoundOption,
    SetOption,
    SilentOption,
    app,
    begun,
    err,
    load,
    out,
)


@app.command()
def check(config: ConfigArgument, overrides: SetOption = None, round_number: RoundOption = 1) -> None:
    """Look for all that would keep a run from ending well on this machine, in a second or two; buys nothing."""
    begun(f"check {config}")
    from pipelines import preflight

    preflight.check_all(load(config, overrides, round_number))
    out.print(f"{config}: nothing was found that would keep a run from ending well")


@app.command()
def verify(
    output: OutputArgument,
    beam_args: BeamArgument = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Compare source and thoughts with what was scored and kept, with Beam.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    public_key: Annotated[
        str | None, typer.Option("--public-key", metavar="FILE", help="Also check that the key's owner has signed it.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Files read at the same time, and --deep's processes; as many as processors."),
    ] = None,
    absent: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help='Search output and ledger for these documents, an id a line or {"id": ..., "text": ...}; wrong if any '
            "is found.",
        ),
    ] = None,
    ledger: Annotated[
        str | None, typer.Option(metavar="LEDGER", help="With --absent: the ledger, if not where the plan says.")
    ] = None,
) -> None:
    """Check every file of an output against its manifests, down to the bit."""
    if not (as_json or quiet):
        begun(f"verify {output}")  # before what takes a while to be imported
    from pipelines import signing
    from pipelines.takedown import absent as takedown
    from pipelines.takedown.ids import read_ids
    from pipelines.verify import show
    from pipelines.verify.report import Problem
    from sharding.storage.output import Output

    unsigned = None if public_key is None else signing.unsigned(output, public_key)
    wanted = None if absent is None else read_ids(absent, "--absent")
    shown = None if as_json or quiet else err
    report = show.check(output, deep=deep, workers=workers, beam_args=beam_args or (), progress_on=shown)
    if wanted is not None:
        takedown.add_search(report, wanted, ledger)
    if public_key is not None and unsigned is None:
        report.signed_by = signing.fingerprint_in(public_key)
    if unsigned is not None:
        report.problems, report.ok = [*report.problems, Problem(Output(output).signature, unsigned)], False
    if as_json:
        out.print_json_line(show.to_json(report))
    else:
        out.print(show.render(report))
    if not report.ok:
        raise typer.Exit(1)


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
        out.print_json_line(found)
    else:
        if "stages" in found:
            out.print(status_module.render(found))
        if doing is not None:
            out.print(progress.render(doing))


@app.command()
def report(
    output: OutputArgument,
    to: Annotated[str | None, typer.Option("--to", help="Write this file, and nothing into the output.")] = None,
    quiet: SilentOption = False,
) -> None:
    """Write report.html: what came of a run, in pictures, with documents to read. For a browser; needs no network."""
    if not quiet:
        begun(f"report {output}")
    from pipelines import report as report_module

    url = report_module.write(output, to)
    if not quiet:
        out.print(f"wrote {url}")


@app.command()
def inspect(
    output: OutputArgument,
    doc: Annotated[str | None, typer.Option("--doc", metavar="ID", help="This document.")] = None,
    segment: Annotated[str | None, typer.Option("--segment", metavar="ID#INDEX", help="This segment.")] = None,
    tier: Annotated[str | None, typer.Option("--tier", help="Segments of this tier.")] = None,
    rejected: Annotated[
        str | None, typer.Option("--rejected", metavar="REASON", help="Segments with a trace rejected for this reason.")
    ] = None,
    quarantined: Annotated[
        bool,
        typer.Option("--quarantined", help="What came to nothing in score and augment: place, reason, a line of each."),
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="Documents at most; of each reason with --quarantined.")] = 3,
    plain: Annotated[bool, typer.Option("--plain", help="Text without colours and boxes.")] = False,
) -> None:
    """Read documents with their nats, thoughts and candidates in the terminal."""
    from pipelines.documents import inspect as inspect_module

    plain = plain or not out.is_terminal or out.no_color
    if quarantined:
        from pipelines.documents.quarantine import quarantine

        for line in quarantine(output, limit):
            out.print(line, soft_wrap=True)
            if out.is_unread:
                return
        return
    wanted = inspect_module.Wanted(doc_id=doc, segment_id=segment, tier=tier, rejected=rejected, limit=limit)
    for document in inspect_module.inspect(output, wanted, plain=plain):
        out.print(document, soft_wrap=plain)
        if out.is_unread:
            break
