"""Text to try the mill on: the language reference that ships with every CPython. `make demo`, `thoughtmill init`."""

from __future__ import annotations

import json

NUM_DOCUMENTS = 24
MIN_CHARACTERS, MAX_CHARACTERS = 1_000, 5_000

LICENSE, LANGUAGE = "psfl", "en"
"""Of the text, as the hub spells them."""


def topic_documents() -> list[dict[str, str]]:
    """Two dozen topics of middling length, in the order of their names: {"id", "text"}."""
    from pydoc_data.topics import topics

    middling = sorted(name for name, text in topics.items() if MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS)
    return [{"id": name, "text": topics[name]} for name in middling[:NUM_DOCUMENTS]]


def as_lines() -> bytes:
    """The documents as JSON lines, the same bytes every time."""
    return "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in topic_documents()).encode()
