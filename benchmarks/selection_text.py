"""The documents of `benchmarks.selection`: pages and docstrings that come with Python, one document each."""

from __future__ import annotations

import ast
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

CHARACTERS = 1_000
"""Of a document: one segment of about 250 tokens, a third of it held back from the generator, as text that follows."""

LEFT_OUT = {"idlelib", "lib2to3", "site-packages", "test", "tests", "tkinter", "turtledemo"}
"""Folders of the standard library: tests, what is not documented, and what needs a display."""


def write_source(path: Path, num_documents: int) -> None:
    """So many documents, each cut to its first `CHARACTERS`."""
    found = sorted(documents(CHARACTERS), key=lambda named: (named[0].rpartition("/")[2], named[0]))
    lines = [json.dumps({"id": name, "text": text[:CHARACTERS]}) for name, text in found[:num_documents]]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


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
