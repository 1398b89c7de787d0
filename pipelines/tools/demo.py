"""`make demo`: mills two dozen real documents, the language reference that ships with every CPython, into out/demo.

The documents are the topics of `pydoc_data.topics`; this module writes them as JSON lines and runs `configs/demo.yaml`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pipelines import cli
from sharding.storage.files import write_bytes

SOURCE = "out/demo-source/topics.jsonl"
CONFIG = "configs/demo.yaml"
NUM_DOCUMENTS = 24
MIN_CHARACTERS, MAX_CHARACTERS = 1_000, 5_000


def topic_documents() -> list[dict[str, str]]:
    """Two dozen topics of middling length, in the order of their names: {"id", "text"}."""
    from pydoc_data.topics import topics

    middling = sorted(name for name, text in topics.items() if MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS)
    return [{"id": name, "text": topics[name]} for name in middling[:NUM_DOCUMENTS]]


def main() -> None:
    """Write the source unless it is there, then run the mill on it."""
    lines = "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in topic_documents()).encode()
    # Left alone when it is the same: a file's time is part of what a finished run is recognised by.
    if not Path(SOURCE).is_file() or Path(SOURCE).read_bytes() != lines:
        write_bytes(SOURCE, lines)
    sys.argv = ["thoughtmill", "run", CONFIG]
    cli.main()


if __name__ == "__main__":
    main()
