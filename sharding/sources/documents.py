"""From a record of any format to a document, or to quarantine with the reason: what all readers share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sharding.hashing import content_id
from sharding.records.types import Document, Quarantined
from sharding.sources.config import Source

EXCERPT_BYTES = 400
MAX_DETAIL = 1000
"""Characters."""

FIELDS_SHOWN = 20
"""So many fields of a record are named where the one that is asked for is missing."""


def refuse(origin: str, reason: str, detail: str, payload: bytes = b"") -> Quarantined:
    """A record that can't be read, with the first bytes of it."""
    excerpt = payload[:EXCERPT_BYTES].decode(errors="backslashreplace")
    # It may hold an id or names of the record's own, of any length.
    return Quarantined(stage="score", origin=origin, reason=reason, detail=detail[:MAX_DETAIL], excerpt=excerpt)


def too_long(origin: str, source: Source) -> Quarantined:
    """A record over `max_document_bytes`; none of it is kept."""
    limit = source.config.max_document_bytes
    return refuse(origin, "too_long", f"record longer than {source.key}.max_document_bytes={limit}")


def document_of(record: Mapping[str, Any], origin: str, source: Source, payload: bytes) -> Document | Quarantined:
    """A record of named fields as a document.

    Args:
        record: JSON values by name; the text as str.
        origin: where it was read.
        source: says which field is what.
        payload: what quarantine shows of the record.
    """
    config = source.config
    text = record.get(config.text_field)
    if text is None:
        detail = f"no field {config.text_field!r}; the record has {', '.join(sorted(record)[:FIELDS_SHOWN]) or 'none'}"
        return refuse(origin, "missing_text", detail, payload)
    if not isinstance(text, str):
        return refuse(origin, "text_not_string", f"field {config.text_field!r} is {type(text).__name__}", payload)
    if not text:
        return refuse(origin, "empty", f"field {config.text_field!r} is empty", payload)
    if config.id_field is None:
        doc_id: Any = content_id(text)
    else:
        doc_id = record.get(config.id_field)
        if not isinstance(doc_id, str | int) or isinstance(doc_id, bool) or doc_id == "":
            detail = f"field {config.id_field!r} is {doc_id!r}, not a string or an integer"
            return refuse(origin, "missing_id", detail, payload)
    metadata = {name: record[name] for name in config.metadata_fields if name in record}
    return Document(
        doc_id=str(doc_id),
        text=text,
        origin=origin,
        metadata=json.dumps(metadata, ensure_ascii=False, sort_keys=True) if metadata else None,
        source=config.name,
    )
