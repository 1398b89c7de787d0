"""A user's own code in a file of theirs, as values and evaluators name it: "file.py:Class"."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from sharding.errors import RequestError
from sharding.hashing import fingerprint


def load_file(path: str, what: str) -> Any:
    """The module that a Python file is, run anew.

    Args:
        path: the file.
        what: the file's part, such as "value"; the module's name is made of it and of the path.

    Raises:
        ImportError: it is no Python file; and whatever running it raises.
    """
    name = f"thoughtmill_{what}_{fingerprint([path], 8)}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def load_named(name: str, what: str, key: str) -> Any:
    """What "file.py:Class" or "module:Class" names.

    Args:
        name: as the config has it, with a colon.
        what: as `load_file`'s.
        key: of the config, for errors.

    Raises:
        RequestError: it isn't there, or its code can't be run.
    """
    where, _, attribute = name.rpartition(":")
    try:
        module = load_file(where, what) if where.endswith(".py") else importlib.import_module(where)
        return getattr(module, attribute)
    except Exception as error:  # a user's file raises what it likes
        raise RequestError(f"{key}: {name!r} can't be loaded: {error}") from error


def code_digest(name: str) -> str:
    """A hash of the file of "file.py:Class", so that changed code is noticed; "" for a class of a module.

    Raises:
        OSError: the file can't be read.
    """
    where = name.rpartition(":")[0]
    return fingerprint([Path(where).read_bytes()], 8) if where.endswith(".py") else ""
