"""What selection needs of the other stages: the scorer that values ask, and the parts of the config that count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from difficulty.config import DifficultyConfig
from pipelines import yaml_config
from pipelines.config import MillConfig
from pipelines.joints.shown import holdback_of
from sharding.storage import manifest
from sharding.storage.manifest import Manifest


def select_section(config: MillConfig) -> dict[str, Any]:
    """The parts of the `select` section that can change what is kept."""
    plain: dict[str, Any] = yaml_config.to_mapping(config.select)
    absent = {key for key in ("judge", "trim") if plain[key] is None}  # as before there were such
    left_out = {"min_kept_share", "diversity", *absent}
    return {key: value for key, value in plain.items() if key not in left_out}


def asks_scorer(config: MillConfig) -> bool:
    """Whether selection asks the scorer of the first stage; a value of one's own is taken to."""
    return bool(holdback_of(config).valued_tiers) and config.select.value_name != "length"


def contaminated_urls(output: str, selected: Manifest) -> tuple[str, ...]:
    """The parts that name the documents to leave out because they overlap with a benchmark; none where they stay in."""
    decontamination = selected.facts.get("decontamination") or {}
    return (
        tuple(manifest.file_urls(output, selected, "contaminated")) if decontamination.get("action") == "remove" else ()
    )


@dataclass(frozen=True)
class ScorerNats:
    """Asks a scorer, which is loaded with the first question: what joins values and difficulty.

    Attributes:
        difficulty: the scorer's config.
        context_tokens: `select.gain.context_tokens`.
    """

    difficulty: DifficultyConfig
    context_tokens: int | None

    @classmethod
    def of(cls, config: MillConfig) -> ScorerNats:
        """That of a run."""
        return cls(config.gain_difficulty, config.select.gain.context_tokens)

    def __call__(self, prefixes: Sequence[str], text: str, skipped: int, prefix_tokens: int) -> tuple[np.ndarray, int]:
        from difficulty.transforms import shared_scorer

        found = shared_scorer(self.difficulty).nats_after(
            prefixes, text, skipped, prefix_tokens=prefix_tokens, context_tokens=self.context_tokens
        )
        return found.nats, found.cut_tokens
