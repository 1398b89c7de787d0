"""The two errors a person sees. The command line turns each into one message and an exit code.

Everything the mill raises on purpose is one of these; anything else that escapes is a bug and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class MillError(Exception):
    """The work failed: what failed and where, and what to do about it. Exit code 1."""

    exit_code = 1


class RequestError(MillError):
    """The request was wrong: which key or argument, its value, and what is allowed. Exit code 2."""

    exit_code = 2


PROGRAMMING_ERRORS = (TypeError, AttributeError, NameError, LookupError, AssertionError)
"""Raised by a mistake in somebody's code: the same however often one tries."""


def restated(error: BaseException | type[BaseException], message: str) -> MillError:
    """An error, or one of a class, with another message, for someone else who hears of it.

    A wrong request stays one; every other kind is a failure.
    """
    kind = error if isinstance(error, type) else type(error)
    return RequestError(message) if issubclass(kind, RequestError) else MillError(message)


def similar(name: str, known: Iterable[str], least: float = 0.6) -> str:
    """The end of a message about a name that isn't known: which one may have been meant; "" where none is alike.

    Args:
        least: how alike, from 0 to 1, as `difflib` has it.
    """
    found = difflib.get_close_matches(name, sorted(known), n=1, cutoff=least)
    return f"; did you mean {found[0]}?" if found else ""
