"""Calls to a store that may fail for a moment: tried again with a growing wait, and in the end one clear error.

Under `sharding.storage.files`. The clients of object stores try some failures again themselves, each in its own way
(botocore five times, others not at all), and raise classes of their own that are no OSError. A job of days makes
millions of calls, so what passes by itself must not end it. Only calls that may be repeated go through here: whole
files written, read, looked up or removed.
"""

from __future__ import annotations

import errno
import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from sharding.errors import PROGRAMMING_ERRORS, MillError

logger = logging.getLogger(__name__)

TRIES = 6
FIRST_WAIT_S = 0.2
"""Doubles with every try: 6 s in all, after what the store's own client has waited."""

T = TypeVar("T")

_FINAL = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    ImportError,
    NotImplementedError,
)
_CLIENTS = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "azure", "adlfs", "huggingface_hub", "httpx")

_FINAL_NUMBERS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG, errno.EFBIG})
"""What is the same however often one asks."""


def patiently(doing: str, url: str, fs: AbstractFileSystem, call: Callable[[], T]) -> T:
    """What `call` returns, tried again when a store fails; a local disk is asked once.

    Args:
        doing: what is done with the file, for the message: "write", "read", ...
        url: the file.
        fs: the file's store.
        call: one call to the store; may be repeated.

    Raises:
        MillError: the store has refused for good; names the file. Its cause is the store's own error. What a mistake in
            the code raises is passed on as it is, at once.
    """
    for attempt in range(TRIES):
        try:
            return call()
        except (MillError, *PROGRAMMING_ERRORS):
            raise
        except Exception as error:  # every store's client has error classes of its own
            if attempt == TRIES - 1 or not _may_pass(error, fs):
                raise MillError(f"cannot {doing} {url}: {_reason(error)}") from error
            logger.info("%s of %s failed, is tried again: %s", doing, url, error)
        # Workers that failed together shouldn't come back together.
        time.sleep(FIRST_WAIT_S * 2**attempt * random.uniform(0.5, 1.0))
    raise AssertionError("the last try returns or raises")


def is_store_error(error: Exception) -> bool:
    """Whether an error that is no OSError is one of a store's client: for streams, which can't be asked twice."""
    return type(error).__module__.partition(".")[0] in _CLIENTS


def _may_pass(error: Exception, fs: AbstractFileSystem) -> bool:
    if isinstance(fs, LocalFileSystem) or isinstance(error, _FINAL):
        return False
    return not (isinstance(error, OSError) and error.errno in _FINAL_NUMBERS)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
