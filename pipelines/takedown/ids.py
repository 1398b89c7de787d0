"""Which documents are to go: a file of ids, one a line or as JSON."""

from __future__ import annotations

import os
from dataclasses import dataclass

import msgspec

from sharding import storage
from sharding.errors import RequestError


class _Line(msgspec.Struct):
    id: str | int
    text: str = ""


@dataclass(frozen=True)
class Wanted:
    """Documents that somebody wants gone.

    Attributes:
        ids: their ids.
        texts: id → text, of those whose text was given.
    """

    ids: frozenset[str]
    texts: dict[str, str]


def read_ids(path: str | os.PathLike[str], option: str = "--ids") -> Wanted:
    """The documents that a file names: an id a line, or JSON lines of {"id": ...} and, if you like, "text".

    Args:
        path: the file, in any store.
        option: what to call it in an error.

    Raises:
        RequestError: there is no id in it, or a line of JSON without one.
        MillError: it can't be read.
    """
    url = os.fspath(path)
    try:
        lines = storage.read_bytes(url).decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise RequestError(f"{option}: {url} is not UTF-8: {error}") from error
    ids: set[str] = set()
    texts: dict[str, str] = {}
    for number, line in enumerate((line.removesuffix("\r") for line in lines), start=1):
        if not line.strip():
            continue
        if not line.lstrip().startswith("{"):
            ids.add(line)
            continue
        try:
            found = msgspec.json.decode(line, type=_Line)
        except (msgspec.MsgspecError, UnicodeEncodeError) as error:
            raise RequestError(
                f'{option}: {url}, line {number}, is neither an id nor {{"id": ...}} with or without "text": {error}'
            ) from error
        ids.add(str(found.id))
        if found.text:
            texts[str(found.id)] = found.text
    if not ids:
        raise RequestError(f'{option}: {url} names no document: write an id a line, or JSON lines of {{"id": ...}}')
    return Wanted(frozenset(ids), texts)
