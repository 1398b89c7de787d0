"""Manifests: what a stage has finished, from what, and with which bytes.

A stage's folder holds a MANIFEST.json only when the stage is complete; readers go by it and never by a listing. Its
`fingerprint` is a hash of the stage's part of the config and of its inputs, so a stage that is asked for again with
the same fingerprint is skipped.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from typing import Any

import msgspec

from sharding import hashing, storage
from sharding.errors import MillError, RequestError
from sharding.records.types import FileEntry
from sharding.storage.json_files import MAX_BYTES, Number, check_type, decode_json
from sharding.storage.known import FAMILIES_OF, KNOWN
from sharding.storage.output import MANIFEST_NAME as MANIFEST_NAME
from sharding.storage.output import SUCCESS_NAME as SUCCESS_NAME
from sharding.storage.output import Output

FORMAT = 4
"""Version of the layout of manifests and parts; part of every fingerprint."""

TOLD = ("card",)
"""Sections of the config that are told of a result and change nothing in it: no part of its fingerprint."""

STAGES = ("score", "augment", "select", "pack")

_PART_NAME = re.compile(r"-\d{5,}-of-\d{5,}\.arrow(\.[0-9a-f]+\.tmp)?$")
_DELIVERED = r"(?:deliveries/[1-9][0-9]{0,4}/)?"
_BEGINS = {
    "shards": _DELIVERED + r"data/[a-z]+",
    "epoch_shards": r"data/epoch-[1-9][0-9]{0,2}/[a-z]+",
    "documents": _DELIVERED + "index/documents",
}
"""How the names of a family's files begin, where they are not in the stage's own folder."""

_NUMBERED = r"-[0-9]{5,9}-of-[0-9]{5,9}\.arrow"


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The finished result of one stage.

    Attributes:
        stage: "score", "augment", "select" or "pack".
        format: version of this layout.
        fingerprint: hash of `config`, without what is only told (`TOLD`), and `inputs`.
        config: the stage's part of the resolved config.
        inputs: what it was made from: name → fingerprint.
        files: its files by family, such as {"segments": [...], "quarantine": [...]}.
        counts: totals a reader needs: documents, tokens, reasons.
        facts: everything else the card tells: models, versions, histograms.
        rehearsal: whether a rehearsal scorer or engine touched it: not for training.
        elapsed_s: wall seconds of the run that made it; not part of the fingerprint.
        folder: where its files are, when they are another run's: a URL, or a path from the stage's own folder that
            begins with "../"; "" when they are in that folder.
    """

    stage: str
    format: int
    fingerprint: str
    config: dict[str, Any]
    inputs: dict[str, str]
    files: dict[str, list[FileEntry]]
    counts: dict[str, int]
    facts: dict[str, Any]
    rehearsal: bool
    elapsed_s: Number
    folder: str = ""


def fingerprint(stage: str, config: dict[str, Any], inputs: dict[str, str]) -> str:
    """The hash a stage is recognised by: 32 hex digits."""
    deciding = {name: section for name, section in config.items() if name not in TOLD}
    canonical = json.dumps([FORMAT, stage, deciding, inputs], sort_keys=True, separators=(",", ":"))
    return hashing.fingerprint([canonical])


def digest(finished: Manifest) -> str:
    """What a later stage's fingerprint says of this one: changes when any of its files does."""
    parts = [finished.fingerprint]
    parts += [entry.sha256 for family in sorted(finished.files) for entry in finished.files[family]]
    return hashing.fingerprint(["\n".join(parts)])


def stage_url(output: storage.Location, stage: str) -> str:
    """The folder of a stage: pack's result is the output itself, the others lie under `stages/`."""
    return Output(os.fspath(output)).stage(stage)


def manifest_url(output: storage.Location, stage: str) -> str:
    """Where the stage's manifest is."""
    return Output(os.fspath(output)).manifest(stage)


def write(output: str, manifest: Manifest) -> None:
    """Publish the manifest: the last act of a stage (pack adds `_SUCCESS` after it: see `pipelines.stage`)."""
    storage.write_json(manifest_url(output, manifest.stage), msgspec.to_builtins(manifest))


class _Format(msgspec.Struct):
    format: int


def read(output: storage.Location, stage: str, *, any_format: bool = False) -> Manifest | None:
    """The stage's manifest, or None when the stage hasn't finished.

    Args:
        output: the run's output folder.
        stage: one of `STAGES`.
        any_format: take one that another version wrote, if it can be understood: to replace it.

    Raises:
        RequestError: another version of thoughtmill wrote it, in another format.
        MillError: there is a manifest but it cannot be understood, or names files outside of its folder.
    """
    url = manifest_url(output, stage)
    if not storage.exists(url):
        return None
    data, otherwise = storage.read_bytes(url, MAX_BYTES), f"{url} is not a manifest of this version"
    version = decode_json(data, _Format, otherwise).format
    if version != FORMAT and not any_format:
        raise RequestError(
            f"output: {output} holds the stage {stage} in format {version}, and this version of thoughtmill reads "
            f"format {FORMAT}: name another output, add --replace to mill it again, or read it with the version "
            "that wrote it"
        )
    found = decode_json(data, Manifest, otherwise)
    if problem := misplaced(found, stage):
        raise MillError(f"{url} is not a manifest of this output: {problem}")
    if found.folder:
        storage.foreign(found.folder, url)
    if version == FORMAT:
        for part, kind in KNOWN[stage].items():
            check_type(getattr(found, part), kind, f"{otherwise}: {part}")
        check_type(found.counts, dict[str, Number], f"{otherwise}: counts")
    return found


def is_name_of(family: str, name: str) -> bool:
    """Whether a file of a family may be called so: nothing else is written or removed because some file says so."""
    return re.fullmatch(_BEGINS.get(family, re.escape(family)) + _NUMBERED, name) is not None


def misplaced(manifest: Manifest, stage: str) -> str | None:
    """What in a manifest points out of its folder, or at what is no file of its stage; None when nothing does.

    A stage that is made again removes what its manifest names: nothing but what the stage writes may be named there.
    """
    if manifest.stage != stage:
        return f"it is of the stage {manifest.stage!r}, not {stage}"
    folder = manifest.folder
    while folder.startswith("../"):
        folder = folder.removeprefix("../")
    if ".." in folder.split("/"):
        return f"folder is {manifest.folder!r}"
    for family, entries in manifest.files.items():
        if family not in FAMILIES_OF[stage]:
            return f"files.{family[:100]!r} is no family of its files"
        for entry in entries:
            if not is_name_of(family, entry.name):
                return f"a name in files.{family} is {entry.name[:200]!r}, which is no name of such a file"
    return None


def require(output: storage.Location, stage: str) -> Manifest:
    """The stage's manifest.

    Raises:
        MillError: the stage hasn't finished.
    """
    found = read(output, stage)
    if found is None:
        raise MillError(f"{manifest_url(output, stage)} is missing: run `thoughtmill {stage}` first")
    return found


def files_url(output: storage.Location, manifest: Manifest) -> str:
    """The folder that the names of the manifest's files are relative to."""
    folder, rest = stage_url(output, manifest.stage), manifest.folder
    if not rest.startswith("../"):
        return rest or folder
    # By hand: object stores don't know "..".
    while rest.startswith("../"):
        folder, rest = posixpath.dirname(folder), rest.removeprefix("../")
    return storage.join(folder, rest)


def file_urls(output: storage.Location, manifest: Manifest, family: str) -> list[str]:
    """The URLs of one family of the manifest's files."""
    base = files_url(output, manifest)
    return [storage.join(base, entry.name) for entry in manifest.files.get(family, [])]


def strays(output: str, made: Manifest) -> list[str]:
    """The URLs of parts and shards that the manifest doesn't name, whole or half-written: a killed run left them.

    A reader that goes by names, such as `load_dataset`, would take them for the stage's own. Of borrowed files none is
    a stray: what lies in the folder all the same may be lent itself, or be the very files under another spelling.
    """
    if made.folder:
        return []
    named = {url for family in made.files for url in file_urls(output, made, family)}
    at = Output(output)
    folders = (*at.data_folders(), at.index) if made.stage == STAGES[-1] else (stage_url(output, made.stage),)
    found = (
        storage.join(folder, name)
        for folder in folders
        for name in storage.list_names(folder)
        if _PART_NAME.search(name)
    )
    return [url for url in found if url not in named]
