"""What the checks of a preflight look at: a run, and what more than one of them needs to know of it, found once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from pipelines.config import MillConfig
from sharding.errors import MillError
from sharding.models.tokenizer import TextTokenizer, load_tokenizer
from sharding.sources.files import list_files
from sharding.storage import manifest

BYTES_PER_TOKEN = 4
"""Of text, about."""


@dataclass
class Subject:
    """A run before it begins.

    Attributes:
        config: the run.
        here: the stages that are made on this machine.
        known_bytes: of text in the sources, where somebody has counted.
    """

    config: MillConfig
    here: tuple[str, ...]
    known_bytes: int | None = None

    @cached_property
    def tokenizer(self) -> TextTokenizer | MillError:
        """The training tokenizer, or why there is none, which a check of its own tells."""
        try:
            return load_tokenizer(self.config.tokenizer)
        except MillError as error:
            return error

    @cached_property
    def source_bytes(self) -> int:
        """About how many bytes of text there are: as scored, as counted, or as the files' sizes have it; 0: unknown."""
        if self.known_bytes is not None:
            return self.known_bytes
        try:
            if (scored := manifest.read(self.config.scored or self.config.output, "score")) is not None:
                return BYTES_PER_TOKEN * scored.counts["source_tokens"]
            local = [s for s in self.config.all_sources if s.config.format != "huggingface"]
            return sum(int(info.get("size") or 0) for source in local for _, info in list_files(source))
        except MillError:
            return 0  # whoever reads it says why
