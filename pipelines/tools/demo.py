"""`make demo`: mills two dozen real documents, the language reference that ships with every CPython, into out/demo.

This module writes them as JSON lines and runs `configs/demo.yaml`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pipelines import cli
from pipelines.sample_text import as_lines
from sharding.storage.files import write_bytes

SOURCE = "out/demo-source/topics.jsonl"
CONFIG = "configs/demo.yaml"


def main() -> None:
    """Write the source unless it is there, then run the mill on it."""
    lines = as_lines()
    # Left alone when it is the same: a file's time is part of what a finished run is recognised by.
    if not Path(SOURCE).is_file() or Path(SOURCE).read_bytes() != lines:
        write_bytes(SOURCE, lines)
    sys.argv = ["thoughtmill", "run", CONFIG]
    cli.main()


if __name__ == "__main__":
    main()
