"""Scores of another run in place of one's own: what the score stage is where `scored` names an output.

The stage's manifest is copied and says where the files are; nothing is scored and nothing is copied beside it. All that
goes by manifests, the later stages, verify, the card, finds the scores as if they were the run's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from fsspec.implementations.local import LocalFileSystem

from pipelines.config import MillConfig
from pipelines.score import what_decides
from pipelines.stage import StageRun, differences
from sharding import storage
from sharding.errors import RequestError
from sharding.storage import manifest
from sharding.storage.manifest import Manifest


def borrow_scores(config: MillConfig, *, beam_args: Sequence[str] = (), replace: bool = False) -> tuple[Manifest, bool]:
    """Take over the scores of `config.scored` unless that is done; the manifest, and whether it was done now.

    Raises:
        MillError: there are none.
        RequestError: they were made with another tokenizer or scorer than this config says, or this output holds
            others and not `replace`.
    """
    assert config.scored is not None, "the score stage is this run's own"
    lent = manifest.require(config.scored, "score")
    wanted = {"tokenizer": config.tokenizer, "difficulty": what_decides(config.difficulty)}
    if differ := differences({name: lent.config.get(name) for name in wanted}, wanted):
        raise RequestError(
            f"scored: the scores of {config.scored} were made otherwise than this config says ({'; '.join(differ[:5])})"
        )
    run = StageRun(config.output, "score", lent.config, lent.inputs)
    found = run.done(replace=replace)
    borrowed = msgspec.structs.replace(lent, folder=_folder(config, manifest.files_url(config.scored, lent)))
    same_files = found is not None and manifest.digest(found) == manifest.digest(lent)
    if found is not None and same_files and found.folder == borrowed.folder:
        return found, False
    if not same_files:
        run.clear()
    manifest.write(config.output, borrowed)
    return borrowed, True


def _folder(config: MillConfig, files_url: str) -> str:
    """How the borrowed manifest says where the files are: an output within the lender's may be moved along with it."""
    own, lender = manifest.stage_url(config.output, "score"), f"{(config.scored or '').rstrip('/')}/"
    if own.startswith(lender) and files_url.startswith(lender):
        return "../" * len(own.removeprefix(lender).split("/")) + files_url.removeprefix(lender)
    fs, path = storage.filesystem(files_url)
    return path if isinstance(fs, LocalFileSystem) else files_url
