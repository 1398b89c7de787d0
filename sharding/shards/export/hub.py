"""The Hugging Face hub: a finished output as a dataset repository. What `thoughtmill export --to hub` calls.

`upload_folder` streams, commits large folders in several parts and goes on where it was interrupted when it is called
again. Only what the manifest names is uploaded, and what the mill has written beside it: card, config, report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fsspec.implementations.local import LocalFileSystem

from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.storage import manifest
from sharding.storage.output import Output

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def upload(
    output: str,
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    api: HfApi | None = None,
) -> str:
    """Upload a finished output to the hub as a dataset.

    Files of an earlier upload that this one doesn't have are deleted there, so that the card opens exactly these.

    Args:
        output: the run's output folder, on a file system.
        repo_id: "name" or "organisation/name"; made if it isn't there.
        private: whether a new repository is private.
        revision: the branch; the main one when absent.
        api: the hub's client; one with the stored token when absent.

    Returns:
        The URL of the repository.

    Raises:
        RequestError: the name is not one the hub allows, or the output is not on a file system.
        MillError: the run isn't finished, or the hub refused.
    """
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
    names = published_names(output)
    try:
        repo = client.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        client.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=storage.filesystem(output)[1],
            revision=revision,
            allow_patterns=names,
            delete_patterns=["data/*"],
            commit_message="Upload with thoughtmill",
        )
    except (httpx.HTTPError, OSError) as error:
        raise MillError(f"cannot upload {output} to {repo_id}: {error}") from error
    return str(repo)


def published_names(output: str) -> list[str]:
    """The files of a finished output that make the dataset: its shards, and what the mill wrote beside its manifest.

    Raises:
        MillError: the run isn't finished.
    """
    packed, at = manifest.require(output, "pack"), Output(output)
    if not storage.exists(at.success):
        raise MillError(f"{output}: {manifest.SUCCESS_NAME} is missing: the run did not finish")
    beside = (at.manifest("pack"), at.success, at.card, at.croissant, at.config, at.difficulty, at.pilot, at.report)
    names = [url.rsplit("/", 1)[-1] for url in beside if storage.exists(url)]
    return [*(entry.name for entry in packed.files.get("shards", [])), *names]
