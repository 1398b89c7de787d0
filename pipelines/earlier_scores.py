"""Scores of an earlier state of the corpus, where its documents are still the same: what is new alone is scored.

    stages/score ─► withdrawn ─► stages/score/.earlier ─┐
    documents as they are now ──────────────────────────┴─► by id ─► same text: its nats are known │ new or changed

A document is known again by its id and its text, which its training tokens spell, wherever it is read now: files may be
renamed, split or sorted anew (`pipelines.grown`). What of the nats hangs on the whole corpus, the memory and so the
difficulty, is worked out anew. So the parts are, byte by byte, those of a run that has scored everything, as far as the
scorer gives a text the same nats whatever it is batched with. The earlier parts are set aside when they are withdrawn
and stay until the new ones are published: a run that is killed meanwhile finds them again. What a plan has scored of a
sample is kept in the same way.
"""

from __future__ import annotations

import contextlib
import logging
import posixpath
from collections.abc import Iterable
from typing import Any

import msgspec

from difficulty.config import SCORERS
from pipelines.config import MillConfig
from pipelines.scorer_identity import difficulty_section, model_inputs
from sharding import storage
from sharding.beam.part_names import part_name
from sharding.errors import MillError
from sharding.models.tokenizer import load_tokenizer
from sharding.records.families import SEGMENTS
from sharding.records.types import FileEntry, ScoredSegment
from sharding.storage import manifest
from sharding.storage.manifest import Manifest
from sharding.storage.output import Output
from sharding.storage.retries import patiently

logger = logging.getLogger(__name__)

_TOLD = "EARLIER.json"

_NOT_OF_THE_NATS = ("segment_tokens", "threshold_nats", "memory", "memory_path")
"""Keys of `difficulty` that change what is made of the nats of a token, and not the nats."""


class _Aside(msgspec.Struct):
    """The file that says what was set aside."""

    scores: dict[str, Any]
    files: list[FileEntry]


class EarlierScores:
    """What an output holds of the scores of an earlier state of its corpus.

    Args:
        config: the run that may use them.
    """

    def __init__(self, config: MillConfig) -> None:
        self._at = Output(config.output)
        self._tokenizer = config.tokenizer
        self._is_of_use = SCORERS[config.difficulty.scorer].needs_model or config.difficulty.scorer == "rehearsal"
        self._scores = _scores(
            difficulty_section(config.difficulty),
            {"tokenizer": load_tokenizer(config.tokenizer).fingerprint, **model_inputs(config.difficulty)},
        )

    def set_aside(self, finished: Manifest) -> bool:
        """Keep the parts of a manifest that was withdrawn, if they can be of use; whether they are.

        Raises:
            MillError: the store refused.
        """
        if not self._is_of_use or _scores(finished.config["difficulty"], finished.inputs) != self._scores:
            return False
        entries = finished.files.get(SEGMENTS.name, [])
        told = _Aside(self._scores, entries)
        storage.write_json(storage.join(self._at.earlier, _TOLD), msgspec.to_builtins(told))
        for entry in entries:
            _move(storage.join(self._at.stage("score"), entry.name), storage.join(self._at.earlier, entry.name))
        for family in finished.files.keys() - {SEGMENTS.name}:
            for stale in manifest.file_urls(self._at.root, finished, family):
                storage.remove(stale, self._at.root)
        return True

    def forget(self) -> None:
        """Let everything be scored anew, whatever there is."""
        self._is_of_use = False

    def parts(self) -> list[tuple[str, str]]:
        """(URL, sha256) of the parts that can be used."""
        return [*self._in(self._at.earlier), *self._in(self._at.sample)] if self._is_of_use else []

    def keep(self, segments: Iterable[ScoredSegment]) -> None:
        """Leave the scores of whole documents, each once, by ascending id, as of an earlier state: a plan's sample.

        An output that can't be written loses nothing but their use.
        """
        if not self._is_of_use:
            return
        name = part_name(SEGMENTS.name, 0, 1)
        schema = SEGMENTS.schema(vocab_size=load_tokenizer(self._tokenizer).vocab_size)
        try:
            self._at.check_links()
            entry = storage.write_part(storage.join(self._at.sample, name), segments, schema, name=name)
            told = msgspec.to_builtins(_Aside(self._scores, [entry]))
            storage.write_json(storage.join(self._at.sample, _TOLD), told)
        except MillError as error:
            logger.info("the scores of the sample are not kept: %s", error)

    def _in(self, folder: str) -> list[tuple[str, str]]:
        url = storage.join(folder, _TOLD)
        if not storage.exists(url):
            return []
        try:
            told = msgspec.json.decode(storage.read_bytes(url), type=_Aside)
        except msgspec.MsgspecError as error:
            logger.warning("%s can't be read, so everything is scored anew: %s", url, error)
            return []
        if told.scores != self._scores:
            return []
        # Whoever wrote the file, no part but one of this folder is read.
        return [(storage.join(folder, posixpath.basename(entry.name)), entry.sha256) for entry in told.files]

    def remove(self) -> None:
        """Remove them: there are newer ones."""
        for folder in (self._at.earlier, self._at.sample):
            for name in storage.list_names(folder):
                storage.remove(storage.join(folder, name), self._at.root)


def _move(url: str, to: str) -> None:
    """Rename a file within an output; on an object store, copy it and remove it. One that is gone is left out."""
    fs, path = storage.filesystem(url)
    target = storage.filesystem(to)[1]

    def rename() -> None:
        with contextlib.suppress(FileNotFoundError):
            fs.mv(path, target)

    patiently("move", url, fs, rename)


def _scores(difficulty: dict[str, Any], inputs: dict[str, str]) -> dict[str, Any]:
    """What the nats of a text hang on."""
    section = {key: value for key, value in difficulty.items() if key not in _NOT_OF_THE_NATS}
    return {"difficulty": section, **{k: v for k, v in inputs.items() if k not in ("source", "memory")}}
