"""Where models are: a local folder, the mill's own store, or the Hugging Face hub.

Every stage names models the way the config does; `resolve_model` turns that name into what loaders understand, and
`model_fingerprint` into what manifests and ledgers record, so that a changed model is noticed.
"""

import hashlib
import os
from pathlib import Path

from sharding.errors import MillError

HOME_VARIABLE = "THOUGHTMILL_HOME"
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt", ".pth")
_HASHED_FILES = ("config.json", "tokenizer.json")


def model_home() -> Path:
    """The folder that `thoughtmill models fetch` fills: $THOUGHTMILL_HOME/models, or ~/.cache/thoughtmill/models."""
    home = os.environ.get(HOME_VARIABLE)
    return (Path(home) if home else Path.home() / ".cache" / "thoughtmill") / "models"


def resolve_model(name: str) -> str:
    """The local folder of a model where there is one, otherwise the name itself, taken as a hub id.

    Args:
        name: a folder, the name of a model in `model_home()` such as "smollm2-135m-instruct", or a hub id.

    Raises:
        MillError: `name` is empty, or written as a path (it starts with "/", "." or "~") that is no folder.
    """
    if not name.strip():
        raise MillError("a model has an empty name; name a folder, a fetched model or a Hugging Face hub id")
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder)
    if name.startswith(("/", ".", "~")):
        raise MillError(f"model {name!r}: there is no such folder")
    stored = model_home() / name
    return str(stored) if stored.is_dir() else name


def model_fingerprint(path_or_id: str, revision: str | None = None) -> str:
    """What tells one version of a model from another.

    Args:
        path_or_id: as `resolve_model` returns it.
        revision: the hub revision asked for.

    Returns:
        For a local folder 16 hex digits over the content of config.json and tokenizer.json and the names and sizes of
        the weight files (hashing the weights themselves would take minutes at every start); for a hub id the revision
        or "main".
    """
    folder = Path(path_or_id)
    if not folder.is_dir():
        return revision or "main"
    digest = hashlib.sha256()
    for name in _HASHED_FILES:
        if (folder / name).is_file():
            digest.update(f"{name}\0".encode() + (folder / name).read_bytes() + b"\0")
    for path in sorted(folder.iterdir()):
        if path.suffix in _WEIGHT_SUFFIXES:
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
    return digest.hexdigest()[:16]
