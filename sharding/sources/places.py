"""Where a file of a source is: URLs that workers open again, of chained stores and of names that are no text too."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_to_bytes, urlsplit

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import known_implementations, registry

from sharding import storage
from sharding.errors import MillError, RequestError

BYTES_SCHEME = "file-bytes://"
"""In front of a local path whose name isn't UTF-8, percent-encoded: a record that travels is UTF-8 throughout."""

_HTTP = ("http://", "https://")
_ABSENT, _REFUSED = (404, 410), (401, 403)
"""HTTP's words for it."""


def locate(url: str) -> tuple[AbstractFileSystem, str]:
    """The store of a path or URL and the path in it.

    Raises:
        RequestError: there is no such store, or its package is not installed.
        MillError: the store can't be reached, or lacks something of the system.
    """
    if url.startswith(BYTES_SCHEME):
        return LocalFileSystem(), os.fsdecode(unquote_to_bytes(url.removeprefix(BYTES_SCHEME)))
    try:
        return storage.filesystem(_as_chain(url), chained=True)
    except FileNotFoundError as error:
        try:
            raise_outage(error)
        except OSError as outage:
            raise MillError(f"{url}: its store can't be opened: {outage}") from error
        raise RequestError(f"{url}: there is no {error.filename or url.rpartition('::')[2]}") from error
    except MillError:
        raise
    except Exception as error:  # what a store needs to be opened at all fails in ways of its own
        raise MillError(f"{url}: its store can't be opened: {first_line(error)}") from error


@contextlib.contextmanager
def open_file(url: str, **options: Any) -> Iterator[Any]:
    """A file to read from its store, as it is there now.

    Raises:
        MillError: see `locate`.
        OSError: it can't be opened.
    """
    fs, path = locate(url)
    # To a listing that a store remembers, a file may be the folder of its name: empty.
    fs.invalidate_cache()
    # Not the file alone: an archive is closed with the last that knows its store.
    with fs.open(path, "rb", **options) as file:
        yield file


def first_line(error: BaseException) -> str:
    """What an error says, without the places where a library was looked for in vain."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def url_of(fs: AbstractFileSystem, path: str, given: str) -> str:
    """The URL of a file, for `locate` in any process.

    Args:
        fs: the store.
        path: the file in it.
        given: what the user named, for the stores behind the first of a chain.
    """
    if isinstance(fs, LocalFileSystem):
        url = fs.unstrip_protocol(path)
        try:
            url.encode()
        except UnicodeEncodeError:
            return BYTES_SCHEME + quote(os.fsencode(path))
        return url
    links = _as_chain(given).split("::")
    if len(links) == 1:
        return fs.unstrip_protocol(path)
    # The path is in the first link that has a place of its own: `simplecache` and the like have none.
    at = next((i for i, link in enumerate(links) if not _is_bare(link)), 0)
    here = f"{links[at].partition('://')[0]}://{path}" if "://" in links[at] else path
    return "::".join([*links[:at], here, *map(_absolute, links[at + 1 :])])


def name_of(url: str) -> str:
    """A URL or path without what an HTTP server is asked beside it: what tells a format by its ending."""
    plain = url.partition("::")[0] if "://" in url.partition("::")[0] else url.rpartition("::")[2]
    return urlsplit(plain)._replace(query="", fragment="").geturl() if plain.startswith(_HTTP) else plain


def kept_at(url: str) -> str:
    """Where the bytes are that a path or URL leads to: the last link of a chain."""
    chain = _as_chain(url)
    return chain.rpartition("::")[2] if "://" in chain and not chain.startswith("file://") else url


def raise_outage(error: FileNotFoundError) -> None:
    """Raise what is behind an absence that is none: a server that can't be reached, or that refuses.

    Raises:
        OSError: what its client ran into.
        MillError: the URL is none.
    """
    cause = error.__cause__ or error.__context__
    while cause is not None:
        status = getattr(cause, "status", None)
        if status in _REFUSED:
            raise PermissionError(f"the server answers {status}: it wants a login, or a URL that is still valid")
        is_client = type(cause).__module__.partition(".")[0] in ("aiohttp", "requests") and status not in _ABSENT
        if isinstance(cause, ValueError):
            raise MillError(f"the URL can't be opened: {first_line(cause)}") from error
        if is_client or (isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)):
            raise OSError(first_line(cause)) from error
        cause = cause.__cause__ or cause.__context__


def _as_chain(url: str) -> str:
    # `storage.filesystem` takes what holds no "://" for a local path, which may hold "::".
    first, mark, rest = url.partition("::")
    if mark and "://" not in url and _is_bare(first) and not Path(url).exists():
        return f"{first}::file://{_absolute(rest)}"
    return url


def _is_bare(link: str) -> bool:
    """Whether a link of a chain is the name of a store and no more."""
    return "/" not in link and (link in known_implementations or link in registry)


def _absolute(link: str) -> str:
    return link if "://" in link or _is_bare(link) else os.path.abspath(Path(link).expanduser())  # noqa: PTH100
