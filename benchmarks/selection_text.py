"""The documents of `benchmarks.selection` and `benchmarks.thinking`: pages and docstrings that come with Python."""

from __future__ import annotations

import ast
import json
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics

CHARACTERS = 1_000
"""Of a document: one segment of about 250 tokens, a third of it held back from the generator, as text that follows."""

RUN_WORDS = 8
"""Two documents with so many words in a row in common say the same somewhere."""

LEFT_OUT = {"idlelib", "lib2to3", "site-packages", "test", "tests", "tkinter", "turtledemo"}
"""Folders of the standard library: tests, what is not documented, and what needs a display."""


def write_source(path: Path, num_documents: int, characters: int = CHARACTERS) -> None:
    """So many documents, each cut to its first characters."""
    found = sorted(documents(characters), key=lambda named: (named[0].rpartition("/")[2], named[0]))
    _write(path, [(name, text[:characters]) for name, text in found[:num_documents]])


def write_collection(path: Path, apart_from: Path) -> None:
    """All other documents, whole; without those that have `RUN_WORDS` words in a row in common with one of a source."""
    milled = [json.loads(line)["text"] for line in apart_from.read_text(encoding="utf-8").splitlines()]
    said = {run for text in milled for run in _runs(text)}
    found = dict(documents(CHARACTERS))  # some docstrings have a name in common
    _write(path, [(name, text) for name, text in sorted(found.items()) if said.isdisjoint(_runs(text))])


def _write(path: Path, named: Sequence[tuple[str, str]]) -> None:
    lines = [json.dumps({"id": name, "text": text}) for name, text in named]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def _runs(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[at : at + RUN_WORDS]) for at in range(len(words) - RUN_WORDS + 1)}


def documents(longer_than: int) -> list[tuple[str, str]]:
    """(name, text) of the pages and docstrings of more than so many characters."""
    pages = [(f"topic/{name}", text) for name, text in sorted(topics.items())]
    return [(name, text) for name, text in [*pages, *_docstrings()] if len(text) > longer_than]


def _docstrings() -> Iterator[tuple[str, str]]:
    """(name, text) of the docstrings of the standard library, read without importing anything."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted([*library.glob("*.py"), *library.glob("*/*.py")]):
        if not LEFT_OUT & set(path.parts):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                    yield f"{path.relative_to(library)}/{getattr(node, 'name', '')}", ast.get_docstring(node) or ""
