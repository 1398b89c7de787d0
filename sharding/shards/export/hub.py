"""The Hugging Face hub: a finished output as a dataset repository. What `thoughtmill export --to hub` calls.

`upload_folder` streams, commits large folders in several parts and goes on where it was interrupted when it is called
again. Only shards that the manifest names are uploaded, when they are what it says, and what the mill has written
beside it under names of its own: nothing else that lies in the folder, and nothing that a link leads to.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from fsspec.implementations.local import LocalFileSystem

from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.storage import manifest
from sharding.storage.arrow_files import file_buffer
from sharding.storage.hashed_file import holds
from sharding.storage.output import Output

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def upload(
    output: storage.Location,
    repo_id: str,
    *,
    private: bool = True,
    report: bool = False,
    revision: str | None = None,
    api: HfApi | None = None,
) -> str:
    """Upload a finished output to the hub as a dataset.

    Files of an earlier upload that this one doesn't have are deleted there, so that the card opens exactly these.

    Args:
        output: the run's output folder, on a file system.
        repo_id: "name" or "organisation/name"; made if it isn't there.
        private: whether a new repository is private.
        report: upload report.html too, in which documents stand with the traces that were rejected for them.
        revision: the branch; the main one when absent.
        api: the hub's client; one with the stored token when absent.

    Returns:
        The URL of the repository.

    Raises:
        RequestError: the name is not one the hub allows, or the output is not on a file system.
        MillError: the run isn't finished, a file is a link or not what the manifest says, or the hub refused.
    """
    output = os.fspath(output)
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import httpx, validate_repo_id

    if not isinstance(storage.filesystem(output)[0], LocalFileSystem):
        raise RequestError(f"output: {output} is not on a file system: copy it to one, or mount it")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise RequestError(f"repo: {error}") from error
    client = api or huggingface_hub.HfApi()
    names = published_names(output, report=report)
    try:
        repo = client.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        client.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=storage.filesystem(output)[1],
            revision=revision,
            allow_patterns=names,  # none has a character that means something in a pattern
            delete_patterns=["data/*", "index/*", "deliveries/*"],
            commit_message="Upload with thoughtmill",
        )
    except (httpx.HTTPError, OSError) as error:
        raise MillError(f"cannot upload {output} to {repo_id}: {error}") from error
    return str(repo)


def published_names(output: storage.Location, *, report: bool = False) -> list[str]:
    """The files of a finished output that make the dataset: its shards, and what the mill wrote beside its manifest.

    Args:
        output: the run's output folder, on a file system.
        report: whether report.html is among them.

    Raises:
        MillError: the run isn't finished, or a file isn't the output's own.
    """
    output = os.fspath(output)
    packed, at = manifest.require(output, "pack"), Output(output)
    if not storage.exists(at.success):
        raise MillError(f"{output}: {manifest.SUCCESS_NAME} is missing: the run did not finish")
    entries = [entry for family in ("shards", "epoch_shards", "documents") for entry in packed.files.get(family, [])]
    for entry in entries:
        url = storage.join(at.root, entry.name)
        if not holds(file_buffer(url), entry):
            raise MillError(f"{url}: its bytes are not those of its manifest: run `thoughtmill verify`")
    beside = [at.manifest("pack"), at.success, at.card, at.croissant, at.config, at.difficulty, at.pilot]
    there = [url for url in (*beside, at.report) if storage.exists(url) and (report or url != at.report)]
    for url in there:
        # What it says is in no manifest, so a link could lead to anything.
        if Path(storage.filesystem(url)[1]).is_symlink():
            raise MillError(f"{url} is a link: only files of the output itself are uploaded; replace it by its content")
    return [*(entry.name for entry in entries), *(url.rsplit("/", 1)[-1] for url in there)]
