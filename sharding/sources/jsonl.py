"""JSON lines: one object per line."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from sharding.records.types import Document, Quarantined
from sharding.sources.config import Source
from sharding.sources.documents import document_of, refuse, too_long
from sharding.sources.lines import lines, open_text, origin_of
from sharding.sources.units import ReadUnit


def read(unit: ReadUnit, source: Source) -> Iterator[Document | Quarantined]:
    """The records of the lines that begin in the unit; blank lines are none."""
    with open_text(unit.url) as stream:
        for line in lines(stream, unit.start, unit.end, source.config.max_document_bytes):
            if unit.end is not None and line.start >= unit.end:
                return
            origin = origin_of(unit, line)
            if line.data is None:
                yield too_long(origin, source)
            elif line.data.strip():
                yield parse_json_line(line.data, origin, source)


def parse_json_line(line: bytes, origin: str, source: Source) -> Document | Quarantined:
    """One line of JSON as a document, or in quarantine: invalid_utf8, malformed_json, missing_text, empty, ..."""
    try:
        line.decode()
        record = msgspec.json.decode(line)
    except UnicodeDecodeError as error:
        return refuse(origin, "invalid_utf8", str(error), line)
    except (msgspec.DecodeError, RecursionError) as error:
        return refuse(origin, "malformed_json", str(error), line)
    if not isinstance(record, dict):
        return refuse(origin, "malformed_json", f"the line holds {type(record).__name__}, not an object", line)
    return document_of(record, origin, source, line)
