"""The command `show`: a document by its id, from the shards alone."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.cli.application import JsonOption, OutputArgument, app, out


@app.command()
def show(
    output: OutputArgument,
    doc_id: Annotated[str, typer.Argument(metavar="DOC_ID", help="The id of a document.")],
    as_json: JsonOption = False,
    plain: Annotated[bool, typer.Option("--plain", help="Text without colours and boxes.")] = False,
) -> None:
    """Print a document with its thoughts from the shards alone; a copy of the corpus is enough."""
    from pipelines.documents.packed import ShownDocument

    found = ShownDocument(output, doc_id)
    if as_json:
        out.print_json_line(found.to_json())
        return
    plain = plain or not out.is_terminal or out.no_color
    out.print(found.render(plain=plain), soft_wrap=plain)
