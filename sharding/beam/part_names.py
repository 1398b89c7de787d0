"""The names of part files: which part of how many a file is."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sharding.errors import MillError

_PART_NAME = re.compile(r"-([0-9]{5,9})-of-([0-9]{5,9})\.arrow$")

MAX_PARTS = 1 << 17
"""More than a stage ever writes; what is made for each part, also an empty one, stays small."""


def part_name(family: str, index: int, num_parts: int) -> str:
    """File name of a part, such as "segments-00003-of-00016.arrow"."""
    return f"{family}-{index:05d}-of-{num_parts:05d}.arrow"


def part_of(url: str) -> tuple[int, int]:
    """(number, how many) of a part, from its name.

    Raises:
        MillError: the name doesn't say.
    """
    match = _PART_NAME.search(url)
    if match is None:
        raise MillError(f"{url}: its name doesn't say which part it is, such as segments-00003-of-00016.arrow")
    number, count = int(match[1]), int(match[2])
    if not number < count <= MAX_PARTS:
        raise MillError(f"{url}: its name says that it is part {number} of {count}; there are {MAX_PARTS} at most")
    return number, count


def part_count(urls: Sequence[str]) -> int:
    """How many parts a family was dealt out to, from the names of those that have records; 1 where none has."""
    return part_of(urls[0])[1] if urls else 1
