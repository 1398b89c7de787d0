"""The command that lays runs side by side: compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.application import JsonOption, SilentOption, app, begun, out
from sharding.errors import RequestError


@app.command()
def compare(
    outputs: Annotated[
        list[str],
        typer.Argument(metavar="OUTPUT OUTPUT...", help="Output folders; the first is what others are held against."),
    ],
    target: Annotated[
        str | None,
        typer.Option("--target", help="The page to write, a file in any store; compare.html in the current folder."),
    ] = None,
    as_json: JsonOption = False,
    quiet: SilentOption = False,
) -> None:
    """Lay runs side by side: config, plan, kept share, gain, cost, and a page with the same documents of each."""
    if not (as_json or quiet):
        begun(f"compare {' '.join(outputs)}")
    from pipelines import compare as compare_module
    from pipelines.compare import page, show
    from pipelines.compare.runs import read_runs
    from sharding import storage

    url = target if as_json else target or _here(outputs)
    runs = read_runs(outputs)
    figures = compare_module.figures(runs)
    if as_json:
        out.print_json_line(show.to_json(runs, figures))
    elif not quiet:
        for part in show.render(figures):
            out.print(part)
    if url is not None:
        storage.write_bytes(url, page.render(runs, figures).encode())
        if not (as_json or quiet):
            out.print(f"\nwrote {url}")


def _here(outputs: list[str]) -> str:
    """The page in the current folder, unless that is part of an output: nothing is put there unasked."""
    from pipelines.compare import PAGE_NAME

    here = Path.cwd()
    for output in outputs:
        folder = Path(output).absolute() if "://" not in output else None
        if folder is not None and folder.resolve() in (here, *here.parents):
            raise RequestError(f"compare: the current folder is in {output}; name the page to write with --target")
    return PAGE_NAME
