"""The command that shows a run in a browser while it goes on: watch."""

from __future__ import annotations

import threading
from typing import Annotated

import typer

from pipelines.cli.application import OutputArgument, app, out


@app.command()
def watch(
    output: OutputArgument,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; a free one unless named.")] = 0,
    host: Annotated[
        str, typer.Option("--host", help="The address to listen on; others than this machine's show the run to others.")
    ] = "127.0.0.1",
) -> None:
    """Show a run in a browser, live: what it does and what has come of it. Until Ctrl-C; writes nothing."""
    from pipelines.live.server import Server

    with Server(output, host, port) as server:
        threading.Thread(target=server.serve_forever, name="thoughtmill-watch", daemon=True).start()
        out.print(f"{server.url} shows {output}; Ctrl-C ends it")
        threading.Event().wait()
