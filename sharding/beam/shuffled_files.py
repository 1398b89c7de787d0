"""Values on their way from one worker of a machine to another, in files. Behind `sharding.beam.shuffle`.

A file holds the values of one partition from one bundle, each behind its length. Files are named by whoever has written
them to the end; what a bundle that failed leaves behind is read by nobody.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

from sharding.errors import MillError

HELD_BYTES = 32 << 20
"""What a bundle holds of its values before they go to their files."""

_LENGTH = struct.Struct("<Q")


class PartitionWriter:
    """Deals out the values of one bundle to a file for each partition.

    Args:
        folder: of the files; made if it isn't there.
    """

    def __init__(self, folder: str) -> None:
        self._folder, self._token = Path(folder), token_hex(8)
        self._held: dict[int, list[bytes]] = {}
        self._held_bytes = 0
        self._paths: dict[int, Path] = {}
        self._sizes: dict[int, int] = {}

    def add(self, partition: int, value: bytes) -> None:
        """Take in a value.

        Raises:
            MillError: the disk refused.
        """
        held = self._held.setdefault(partition, [])
        held += (_LENGTH.pack(len(value)), value)
        self._held_bytes += len(value) + _LENGTH.size
        if self._held_bytes >= HELD_BYTES:
            self._write()

    def close(self) -> dict[int, str]:
        """Partition → its file.

        Raises:
            MillError: the disk refused.
        """
        self._write()
        return {partition: str(path) for partition, path in self._paths.items()}

    def _write(self) -> None:
        for partition, values in self._held.items():
            path = self._paths.setdefault(partition, self._folder / f"{partition}-{self._token}")
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                with path.open("ab") as file:
                    if file.tell() != self._sizes.get(partition, 0):
                        raise MillError(f"{path} was changed or removed while it was written; run again")
                    file.writelines(values)
                    self._sizes[partition] = file.tell()
            except OSError as error:
                raise MillError(
                    f"cannot write {path}: {error.strerror or error}; the Beam option --local_shuffle_folder names "
                    "another place for what goes from one step to the next"
                ) from error
        self._held, self._held_bytes = {}, 0


@dataclass(frozen=True)
class FiledValues:
    """The values of some files; may be gone over several times, and holds one at a time."""

    paths: tuple[str, ...]

    def __iter__(self) -> Iterator[bytes]:
        for path in self.paths:
            try:
                with Path(path).open("rb", buffering=1 << 20) as file:
                    while head := file.read(_LENGTH.size):
                        (length,) = _LENGTH.unpack(head)
                        value = file.read(length)
                        if len(value) < length:
                            raise MillError(f"{path} ends in the middle of a value")
                        yield value
            except (OSError, struct.error) as error:
                raise MillError(f"cannot read {path}: {error}") from error
