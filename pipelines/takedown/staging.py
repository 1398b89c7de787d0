"""What a removal has prepared before anything is touched, and how it is put into its places, again and again."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import pyarrow as pa

from sharding import storage
from sharding.errors import MillError
from sharding.records.base import Record
from sharding.records.types import FileEntry
from sharding.storage import manifest
from sharding.storage.json_files import MAX_BYTES, read_json
from sharding.storage.known import FAMILIES_OF
from sharding.storage.manifest import Manifest
from sharding.storage.output import Output

Stage = Literal["score", "augment", "select", "pack"]


class Move(msgspec.Struct, frozen=True):
    """A file that takes the place of another, or one that goes.

    Attributes:
        stage, name: the file, from the folder of its stage.
        staged: what takes its place, in the folder of the removal; "" where nothing does.
    """

    stage: Stage
    name: str
    staged: str


class Moves(msgspec.Struct, frozen=True):
    """What a removal has prepared for one delivery.

    Attributes:
        moves: files of its stages.
        manifests: the stages whose manifests are staged, in the order of the flow.
        pilot: whether a new pilot.json is staged.
    """

    moves: list[Move]
    manifests: list[Stage]
    pilot: bool = False


class Journal(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a removal still has to do, whoever does it.

    Attributes:
        at: when it was begun, in UTC.
        moves: files of stages.
        manifests: the stages whose manifests are staged, in the order of the flow.
        documents: how many documents go.
        tombstones: hashes of the ids that go now.
        ledger: its folder.
        request_keys, renamed: see `augment.ledger.forgetting`.
        pilot: whether a new pilot.json is staged.
        deliveries: number → the same of each delivery that has joined, staged in its own output.
    """

    at: str
    moves: list[Move]
    manifests: list[Stage]
    documents: int
    tombstones: list[str]
    ledger: str
    request_keys: list[str]
    renamed: dict[str, str]
    pilot: bool = False
    deliveries: dict[int, Moves] = {}

    def all_moves(self) -> list[Move]:
        """Those of the first documents and of all deliveries."""
        return [*self.moves, *(move for of in self.deliveries.values() for move in of.moves)]


class Staging:
    """The folder of a removal, and what is prepared there.

    Args:
        output: the run's output folder.
        vocab_size: entries of the training vocabulary.
    """

    def __init__(self, output: str, vocab_size: int) -> None:
        self.output, self.at, self.vocab_size = output, Output(output), vocab_size
        self.moves: list[Move] = []

    def clear(self) -> None:
        """Remove what a removal has left that came to nothing, or to its end."""
        for name in storage.list_names(self.at.removal):
            storage.remove(storage.join(self.at.removal, name), self.output)

    def write(self, stage: str, name: str, records: Sequence[Record], schema: pa.Schema) -> list[FileEntry]:
        """Prepare a part; its entry, none where there are no records and the part goes."""
        if not records:
            self.moves.append(msgspec.convert({"stage": stage, "name": name, "staged": ""}, Move))
            return []
        return [storage.write_part(self.place(stage, name), records, schema, name=name)]

    def place(self, stage: str, name: str) -> str:
        """Where a file is to be written that takes the place of one of a stage."""
        staged = _staged(stage, name)
        self.moves.append(msgspec.convert({"stage": stage, "name": name, "staged": staged}, Move))
        return storage.join(self.at.removal, staged)

    def with_files(self, made: Manifest, files: Mapping[str, list[FileEntry]]) -> Manifest:
        """The manifest with other files."""
        return msgspec.structs.replace(made, files=dict(files))

    def stage_manifest(self, made: Manifest) -> None:
        """Prepare the manifest of a stage."""
        storage.write_json(self._manifest(made.stage), msgspec.to_builtins(made))

    def stage_json(self, name: str, value: Any) -> None:
        """Prepare another file of the output."""
        storage.write_json(storage.join(self.at.removal, name), value)

    def commit(self, journal: Journal) -> None:
        """From here on the removal goes on to its end."""
        storage.write_json(self.at.removal_journal, msgspec.to_builtins(journal))

    def journal(self) -> Journal | None:
        """What is still to be done; None where no removal is under way.

        Raises:
            MillError: the file is something else.
        """
        url = self.at.removal_journal
        if not storage.exists(url):
            return None
        found = read_json(url, Journal, "the journal of a removal", MAX_BYTES)
        if any(not 0 < number < 100_000 for number in found.deliveries):
            raise MillError(f"{url} is not the journal of a removal of this output: it names no delivery of it")
        for move in found.all_moves():
            staged = _staged(move.stage, move.name)
            named = any(manifest.is_name_of(family, move.name) for family in FAMILIES_OF[move.stage])
            if not named or move.staged not in ("", staged):
                raise MillError(f"{url} is not the journal of a removal of this output: it names {move.name[:200]!r}")
        return found

    def staged_manifest(self, stage: str) -> Manifest:
        """The manifest that was prepared for a stage."""
        url = self._manifest(stage)
        found = read_json(url, Manifest, "a manifest", MAX_BYTES)
        if (problem := manifest.misplaced(found, stage)) or found.folder:
            raise MillError(f"{url} is not a manifest of this output: {problem or 'its files are elsewhere'}")
        return found

    def put(self, move: Move, made: Manifest) -> None:
        """Put a file into its place, or take it away.

        Args:
            made: the manifest of its stage, with `folder` empty.

        Raises:
            MillError: the store refused.
        """
        target = storage.join(manifest.files_url(self.output, made), move.name)
        if move.staged:
            copy_file(storage.join(self.at.removal, move.staged), target)
        else:
            storage.remove(target, self.output)

    def put_file(self, name: str, target: str) -> None:
        """Put another file of the output into its place."""
        copy_file(storage.join(self.at.removal, name), target)

    def _manifest(self, stage: str) -> str:
        return storage.join(self.at.removal, f"{stage}-{manifest.MANIFEST_NAME}")


def _staged(stage: str, name: str) -> str:
    """What a file of a stage is called in the folder of the removal."""
    within = name.split("/", 1)[-1]  # shards of several epochs have one name in folders of their own
    return f"{stage}-{within.replace('/', '-')}"


def copy_file(url: str, target: str) -> None:
    """Copy a file, whole or not at all.

    Raises:
        MillError: it can't be read or written; names it.
    """
    fs, path = storage.filesystem(url)
    try:
        with fs.open(path, "rb") as source, storage.publish(target) as out:
            shutil.copyfileobj(source, out, 1 << 20)
    except OSError as error:
        raise MillError(f"cannot copy {url} to {target}: {error.strerror or error}") from error
