"""Real prose and code for `benchmarks.milling`, without a network: what is installed beside Python.

    pydoc's topics, README and METADATA files, docstrings ─► prose ─┐
    modules of the standard library and of installed packages ► code ─┴─► documents, prose and code by turns

Files are taken in the order of a hash of their path, so that every package has its share; a text that is there twice
is taken once. The same interpreter with the same packages gives the same documents.
"""

from __future__ import annotations

import heapq
import inspect
import json
import re
import sysconfig
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

PROSE_SUFFIXES = (".md", ".rst", ".txt")
PROSE_NAMES = ("METADATA",)
_DOCSTRING = re.compile(r'^ *[rR]?"""(.+?)"""', re.DOTALL | re.MULTILINE)
MIN_CHARACTERS, MAX_CHARACTERS = 200, 1_000_000


def documents(size_bytes: int) -> Iterator[dict[str, str]]:
    """Documents of `size_bytes` of text, or all there are: {"id", "text"}, half of the bytes prose and half code.

    Raises:
        ValueError: there is less text than half of what was asked for.
    """
    seen: set[bytes] = set()
    kinds = {"prose": _prose(), "code": _code()}
    given = dict.fromkeys(kinds, 0)
    while kinds and sum(given.values()) < size_bytes:
        kind = min(kinds, key=given.__getitem__)
        name, text = next(kinds[kind], (None, ""))
        if name is None:
            del kinds[kind]
            continue
        data = text.encode("utf-8", "surrogatepass")
        digest = blake2b(data, digest_size=16).digest()
        if digest in seen or not MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS or not _is_unicode(text):
            continue
        seen.add(digest)
        given[kind] += len(data)
        yield {"id": f"{kind}/{name}", "text": text}
    if sum(given.values()) < size_bytes // 2:
        raise ValueError(f"{sum(given.values()):,} bytes of text are installed here; {size_bytes:,} were asked for")


def write_jsonl(folder: Path, size_bytes: int, num_files: int) -> tuple[list[Path], int, int]:
    """The documents as JSON lines, dealt out to `num_files` files.

    Returns:
        The files, the number of documents, and the bytes of text in them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"source-{number:03d}.jsonl" for number in range(num_files)]
    files = [path.open("w", encoding="utf-8") for path in paths]
    count = text_bytes = 0
    for count, document in enumerate(documents(size_bytes), start=1):
        files[count % num_files].write(json.dumps(document, ensure_ascii=False) + "\n")
        text_bytes += len(document["text"].encode())
    for file in files:
        file.close()
    return paths, count, text_bytes


def _prose() -> Iterator[tuple[str, str]]:
    yield from ((f"topics/{name}", topics[name]) for name in sorted(topics))
    for name, path in _installed(lambda p: p.suffix in (*PROSE_SUFFIXES, ".py") or p.name in PROSE_NAMES):
        text = _read(path)
        yield name, "\n\n".join(_docstrings(text)) if path.suffix == ".py" else text


def _code() -> Iterator[tuple[str, str]]:
    return ((name, _read(path)) for name, path in _installed(lambda p: p.suffix == ".py"))


def _installed(wanted: Any) -> Iterator[tuple[str, Path]]:
    """Files below the installation's folders that are wanted, by a hash of their path relative to it."""
    paths = sysconfig.get_paths()
    found: dict[str, Path] = {}
    for root in (Path(paths["purelib"]), Path(paths["stdlib"])):
        for path in root.rglob("*"):
            name = path.relative_to(root).as_posix()
            # The standard library's own site-packages may hold anything.
            if wanted(path) and not name.startswith("site-packages/"):
                found.setdefault(name, path)
    keyed = [(blake2b(name.encode(errors="surrogateescape")).digest(), name) for name in found]
    heapq.heapify(keyed)
    while keyed:
        name = heapq.heappop(keyed)[1]
        yield name, found[name]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _docstrings(source: str) -> Iterator[str]:
    """The docstrings of a module, in order; by their look, since parsing the modules takes longer than milling them."""
    for match in _DOCSTRING.finditer(source):
        yield inspect.cleandoc(match[1])


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text) if not text.isascii() else True
