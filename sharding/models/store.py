"""Where models are: a local folder, the mill's own store, or the Hugging Face hub.

Every stage names models the way the config does; `resolve_model` turns that name into what loaders understand, and
`model_fingerprint` into what manifests and ledgers record, so that a changed model is noticed.
"""

import contextlib
import hashlib
import os
import re
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sharding.errors import MillError, RequestError, similar
from sharding.hashing import file_fingerprint, fingerprint

HOME_VARIABLE = "THOUGHTMILL_HOME"
PACKAGED_NAMES = ("smollm2-135m-instruct", "gemma-3-270m")
"""The models that `thoughtmill models fetch` knows."""

_LOADED_SUFFIXES = (
    *(".safetensors", ".bin", ".gguf", ".pt", ".pth"),
    *(".json", ".jinja", ".model", ".tiktoken", ".txt", ".py"),
)
"""Weights; then configs, tokenizers, chat templates and a model's own code."""

_COMMIT = re.compile("[0-9a-f]{40}")
_DIGEST_BYTES = 16
_FRESH_S = 2.0
"""A file that changed less than this before it was read may change again and look as if it hadn't."""

_HUB_TIMEOUT_S = 20.0
_digests: dict[tuple[str, int, int, int], str] = {}


def mill_home() -> Path:
    """The folder for what is kept between runs: $THOUGHTMILL_HOME, or ~/.cache/thoughtmill.

    Raises:
        MillError: the user has no home, and no variable says otherwise.
    """
    home = os.environ.get(HOME_VARIABLE)
    try:
        return Path(home) if home else Path.home() / ".cache" / "thoughtmill"
    except RuntimeError as error:
        raise MillError(f"this user has no home folder: {HOME_VARIABLE} names a folder for what is kept") from error


def model_home() -> Path:
    """The folder that `thoughtmill models fetch` fills: $THOUGHTMILL_HOME/models, or ~/.cache/thoughtmill/models."""
    return mill_home() / "models"


def resolve_model(name: str) -> str:
    """The local folder of a model where there is one, otherwise the name itself, taken as a hub id.

    Args:
        name: a folder, the name of a model in `model_home()` such as "smollm2-135m-instruct", or a hub id.

    Raises:
        RequestError: it is a packaged model that isn't fetched, or nearly the name of one that is.
        MillError: `name` is empty, or written as a path (it starts with "/", "." or "~") that is no folder.
    """
    if not name.strip():
        raise MillError("a model has an empty name; name a folder, a fetched model or a Hugging Face hub id")
    try:
        folder = Path(name).expanduser()
    except RuntimeError as error:
        raise MillError(f"model {name!r}: {error}; name the folder itself") from error
    if folder.is_dir():
        return str(folder)
    if name.startswith(("/", ".", "~")):
        raise MillError(f"model {name!r}: there is no such folder")
    fetched: list[str] = []
    with contextlib.suppress(MillError, OSError):  # a user without a home has no store
        stored = model_home() / name
        if stored.is_dir():
            return str(stored)
        fetched = [model.name for model in model_home().iterdir() if model.is_dir()]
    if name in PACKAGED_NAMES:
        raise RequestError(f"model {name!r} isn't fetched yet: thoughtmill models fetch {name}")
    # The hub has few models without an owner, and to ask it for one that is mistyped takes a while.
    if "/" not in name and (near := similar(name, {*PACKAGED_NAMES, *fetched}, 0.8)):
        raise RequestError(f"model {name!r} is no folder and no fetched model{near}")
    return name


def is_commit(revision: str) -> bool:
    """Whether a revision or fingerprint is a commit of the hub, which never changes."""
    return _COMMIT.fullmatch(revision) is not None


def model_fingerprint(path_or_id: str, revision: str | None = None) -> str:
    """What tells one version of a model from another: it follows what would be loaded, not what that is called.

    The first look at a folder reads its weights, at about a second a gigabyte and core, several files side by side (as
    fast as the disk, where that is slower). The digest of each file is then kept in `mill_home()` under its path, size
    and times of change to the nanosecond, for all processes and later runs, which ask for no more than that. Without a
    folder that can be written each process reads the weights once.

    Args:
        path_or_id: as `resolve_model` returns it.
        revision: the hub revision asked for: a commit, branch or tag; None for its main branch.

    Returns:
        For a local folder 16 hex digits over names and contents of weights, configs, tokenizer and code; for a hub id
        the commit that the revision is at: as the hub says, or as the local cache has it where the hub can't be asked.

    Raises:
        MillError: a file can't be read, or a hub id's commit is not to be had.
    """
    folder = Path(path_or_id)
    if not folder.is_dir():
        return revision if revision is not None and is_commit(revision) else _hub_commit(path_or_id, revision or "main")
    digest = hashlib.sha256()
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix in _LOADED_SUFFIXES and path.is_file())
        with ThreadPoolExecutor(max_workers=8) as pool:
            for path, content in zip(paths, pool.map(content_digest, paths), strict=True):
                digest.update(f"{path.name}\0{content}\0".encode())
    except OSError as error:
        raise MillError(f"model {path_or_id}: cannot be read: {error}") from error
    return digest.hexdigest()[:16]


def content_digest(path: Path) -> str:
    """The digest of a local file's content: 32 hex digits; read only if it may have changed since it was read last.

    Whoever writes a file, or puts its times back, changes the time of its last change of all, which nobody can set: so
    one that was written in place is read again, and one that was only touched turns out to be the same.

    Raises:
        OSError: it can't be read.
    """
    path, found = path.resolve(), path.stat()
    seen = (str(path), found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    if seen in _digests:
        return _digests[seen]
    name = fingerprint(["\0".join(map(str, seen))], _DIGEST_BYTES)
    kept = None
    with contextlib.suppress(OSError, MillError, ValueError):
        kept = mill_home() / "fingerprints" / name
        known = kept.read_text(encoding="utf-8")
        if len(bytes.fromhex(known)) == _DIGEST_BYTES:  # else a crash has damaged it
            return _digests.setdefault(seen, known)
    settled = time.time() - found.st_ctime > _FRESH_S  # which follows every change, and nobody can set
    with path.open("rb") as file:
        digest = file_fingerprint(file, _DIGEST_BYTES)
    after = path.stat()
    if settled and (after.st_size, after.st_mtime_ns, after.st_ctime_ns) == seen[1:]:
        _digests[seen] = digest
        if kept is not None:
            _keep(kept, digest)
    return digest


def _keep(path: Path, digest: str) -> None:
    """Write a digest for other processes, whole; a cache that can't be written is no error."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
            file.write(digest)
        Path(file.name).replace(path)


def _hub_commit(name: str, revision: str) -> str:
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import httpx

    try:
        commit = HfApi().model_info(name, revision=revision, timeout=_HUB_TIMEOUT_S).sha
        if commit is not None:
            return commit
        reason = "the hub names no commit"
    except RepositoryNotFoundError:
        reason = "the hub has no such model, or not for this user"
    except HFValidationError as error:
        raise MillError(f"model {name!r} is no folder, no fetched model and no hub id: {error}") from error
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        reason = f"the hub can't be asked: {error}"
    for file in ("config.json", "tokenizer.json"):
        cached = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(cached, str):
            return Path(cached).parent.name
    raise MillError(
        f"model {name!r}: the commit of its revision {revision!r} is not known ({reason}) and none is in the local "
        "cache; name a local folder, a model from `thoughtmill models fetch`, a commit, or a hub id while online"
    )
