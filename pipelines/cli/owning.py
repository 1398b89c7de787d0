"""Commands for the owner of a corpus: provenance, sign."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from pipelines.cli.application import OutputArgument, SilentOption, app, begun, out
from pipelines.terminal import counted


@app.command()
def provenance(output: OutputArgument, quiet: SilentOption = False) -> None:
    """Write where every document came from and what made every thought, as Parquet files beside the shards."""
    if not quiet:
        begun(f"provenance {output}")
    from pipelines import provenance as provenance_module
    from sharding.storage.output import Output

    made = provenance_module.write(output)
    rows = {kind: sum(entry.rows for entry in made.files if entry.name.startswith(kind)) for kind in _KINDS}
    held = f"{counted(rows['documents'], 'document')}, {counted(rows['thoughts'], 'thought')}"
    if not quiet:
        out.print(f"wrote {Output(output).provenance}: {held}")


_KINDS = ("documents", "thoughts")


@app.command()
def sign(
    output: OutputArgument,
    key: Annotated[str, typer.Option("--key", metavar="FILE", help="An ed25519 private key, as OpenSSH or in PEM.")],
) -> None:
    """Sign a finished corpus; `verify --public-key FILE` checks it."""
    from pipelines import signing

    out.print(Text(f"signed {output} with the key {signing.sign(output, key)}"))
