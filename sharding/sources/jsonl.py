"""JSON lines: one object per line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from sharding.records.types import Document, Quarantined
from sharding.sources.columns import json_value, wanted_columns
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
    """One line of JSON as a document, or in quarantine: invalid_utf8, malformed_json, missing_text, empty, ...

    What is wrong in a field that the config doesn't name costs nothing: `_leniently`.
    """
    try:
        line.decode()
        record = msgspec.json.decode(line)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError) as error:
        record = _leniently(line, wanted_columns(source.config))
        if record is None:
            reason = "invalid_utf8" if isinstance(error, UnicodeDecodeError) else "malformed_json"
            return refuse(origin, reason, str(error), line)
    if not isinstance(record, dict):
        return refuse(origin, "malformed_json", f"the line holds {type(record).__name__}, not an object", line)
    return document_of(record, origin, source, line)


def _leniently(line: bytes, names: Sequence[str]) -> dict[str, Any] | None:
    """The wanted fields of a line that isn't strict JSON; None where what is wrong is in one of them, or everywhere.

    Not-a-number, infinities and numbers beyond a float's range, all of which other writers write, are null.
    """
    text = line.decode(errors="surrogateescape")
    try:
        record = _decoder.decode(text.strip())
        # A control character in a wanted field makes a difference, one in another field doesn't.
        again = _decoder.decode(text.translate(_CONTROLS).strip())
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(again, dict):
        return None
    wanted = {name: json_value(record[name]) for name in names if name in record}
    try:
        # Neither bytes that aren't UTF-8 nor half of a surrogate pair can be written again.
        json.dumps(wanted, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return None
    if wanted != {name: json_value(again[name]) for name in names if name in again}:
        return None
    return {name: None for name in record if name.isprintable()} | wanted


def _digits(number: str) -> int | None:
    try:
        return int(number)
    except ValueError:  # over Python's limit of digits
        return None


_CONTROLS = dict.fromkeys(range(32), " ")
_decoder = json.JSONDecoder(strict=False, parse_int=_digits)
