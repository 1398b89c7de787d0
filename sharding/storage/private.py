"""This user's own folder on this machine: for locks and sockets, shuffles and uploads, which are nobody else's.

Names in the temporary folder can be foretold, and anyone may have put something in their place. So all that goes there
goes into one folder for each user that nobody else can read or write, and what else stands in its place is refused,
never followed. What belongs to a run has that run's name in it.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from sharding.errors import MillError

_WAY_OUT = "the environment variable TMPDIR names another place for temporary files"


def temporary_folder() -> Path:
    """The folder for temporary files: the first that can be written of $TMPDIR and the system's.

    Raises:
        MillError: there is none, or all are full.
    """
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise MillError(f"no folder takes temporary files, or all are full: {_WAY_OUT} ({error.strerror})") from error


def private_folder(base: Path | None = None) -> Path:
    """A folder that only this user can read and write, made if it isn't there.

    Args:
        base: where it is; the folder for temporary files when absent.

    Raises:
        MillError: it can't be made, or there is something else in its place.
    """
    folder = (base or temporary_folder()) / f"thoughtmill-{os.getuid()}"
    try:
        if base is not None:
            base.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise MillError(f"cannot make {folder}: {error.strerror}; {_WAY_OUT}") from error
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        what = "a link" if stat.S_ISLNK(found.st_mode) else stat.filemode(found.st_mode)
        raise MillError(
            f"{folder} must be a folder of yours that nobody else can read or write, and is {what} of user "
            f"{found.st_uid}: remove it, or leave it to its owner: {_WAY_OUT}"
        )
    return folder


def fresh_folder(folder: Path) -> Path:
    """Make a folder for this user alone where there is nothing.

    Raises:
        MillError: it can't be made, or something is there.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise MillError(f"cannot make {folder}: {error.strerror}; remove what is there") from error
    return folder
