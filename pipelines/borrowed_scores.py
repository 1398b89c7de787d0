"""Scores of another run in place of one's own: what the score stage is where `scored` names an output.

The stage's manifest is copied and says where the files are; nothing is scored and nothing is copied beside it. All that
goes by manifests, the later stages, verify, the card, finds the scores as if they were the run's own.
"""

from __future__ import annotations

import msgspec
from apache_beam.options.pipeline_options import PipelineOptions
from fsspec.implementations.local import LocalFileSystem

from pipelines.config import MillConfig
from pipelines.scorer_identity import difficulty_section, model_inputs
from pipelines.stage import Stage, differences
from sharding import storage
from sharding.errors import RequestError
from sharding.models.tokenizer import load_tokenizer
from sharding.storage import manifest
from sharding.storage.manifest import Manifest


class BorrowedScores(Stage):
    """The score stage of a run that uses those of `config.scored`.

    Raises:
        MillError: there are none.
        RequestError: they were made with another tokenizer or scorer than this config says.
    """

    name = "score"
    idle = True

    def __init__(self, config: MillConfig) -> None:
        assert config.scored is not None, "the score stage is this run's own"
        lent = manifest.require(config.scored, "score")
        sections = {"tokenizer": config.tokenizer, "difficulty": difficulty_section(config.difficulty)}
        inputs = {"tokenizer": load_tokenizer(config.tokenizer).fingerprint, **model_inputs(config.difficulty)}
        differ = differences({name: lent.config.get(name) for name in sections}, sections)
        differ += differences({name: lent.inputs.get(name) for name in inputs}, inputs, "input ")
        if differ:
            said = "; ".join(differ[:5])
            raise RequestError(
                f"scored: the scores of {config.scored} were made otherwise than this config says ({said})"
            )
        super().__init__(config.output, sections=lent.config, inputs=lent.inputs, rehearsal=lent.rehearsal)
        self.borrowed = msgspec.structs.replace(
            lent, folder=_folder(config.scored, self.folder, manifest.files_url(config.scored, lent))
        )

    def revised(self, found: Manifest) -> Manifest | None:
        return self.borrowed if manifest.digest(found) == manifest.digest(self.borrowed) else None

    def make(self, options: PipelineOptions) -> Manifest:
        return self.borrowed


def _folder(lender: str, own: str, files_url: str) -> str:
    """How the borrowed manifest says where the files are: an output within the lender's may be moved along with it."""
    lender = f"{lender.rstrip('/')}/"
    if own.startswith(lender) and files_url.startswith(lender):
        return "../" * len(own.removeprefix(lender).split("/")) + files_url.removeprefix(lender)
    fs, path = storage.filesystem(files_url)
    return path if isinstance(fs, LocalFileSystem) else files_url
