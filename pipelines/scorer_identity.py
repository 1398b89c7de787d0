"""What a score hangs on, for the stages that ask the scorer and for the plan: the config, and fingerprints of what it
names.

A name in a config stays while the model or the memory behind it changes: the config alone would call an old score done.
"""

from __future__ import annotations

from typing import Any

from difficulty.config import SCORERS, DifficultyConfig
from difficulty.surprisal import measure_of
from pipelines import yaml_config
from pipelines.config import MillConfig
from sharding import storage
from sharding.hashing import file_fingerprint
from sharding.models.store import model_fingerprint, resolve_model
from sharding.storage.retries import patiently

_CANT_CHANGE_A_SCORE = ("urls", "api_key_env", "timeout_s", "max_wait_s", "max_in_flight")
"""Where servers are, and how they are asked."""


def difficulty_section(difficulty: DifficultyConfig) -> dict[str, Any]:
    """The parts of the section that can change a score."""
    plain = yaml_config.to_mapping(difficulty)
    section = {key: value for key, value in plain.items() if key not in (*_CANT_CHANGE_A_SCORE, "measure")}
    # Said or not, a measure that is implied is the same; also to scores that were made before there was the key.
    implied = measure_of(section) == difficulty.token_measure
    return section if implied else section | {"measure": difficulty.token_measure}


def source_sections(config: MillConfig) -> dict[str, Any]:
    """The parts of the config that say what the documents are; how many may be missing is none of them."""
    plain = [yaml_config.to_mapping(source.config) for source in config.all_sources]
    for section in plain:
        del section["max_quarantined"]
        for key in ("reader", "options"):
            if not section[key]:  # of datatrove's sources alone: others are as they were before there were the keys
                del section[key]
    named = {"source": plain[0]} if config.source is not None else {"sources": plain}
    # Where nobody looks for them, it is as it was before there was the key.
    near = {} if config.near_copies.action == "keep" else {"near_copies": yaml_config.to_mapping(config.near_copies)}
    return {**named, "duplicates": config.duplicates, **near}


def model_inputs(difficulty: DifficultyConfig) -> dict[str, str]:
    """The fingerprint of each model that scores, by what it is to the stage; none of a scorer without a model.

    Raises:
        MillError: a model is named by a path that doesn't exist.
    """
    models = {"scorer": (difficulty.model, difficulty.revision), "reference": (difficulty.reference_model, None)}
    return {
        role: model_fingerprint(resolve_model(name), revision)
        for role, (name, revision) in models.items()
        if name is not None and SCORERS[difficulty.scorer].needs_model
    }


def memory_inputs(difficulty: DifficultyConfig) -> dict[str, str]:
    """The digest of the n-gram memory that an earlier run stored; none where it is counted anew, or there is none.

    Raises:
        MillError: it can't be read.
    """
    if difficulty.memory_path is None:
        return {}
    fs, path = storage.filesystem(difficulty.memory_path)

    def digest() -> str:
        with fs.open(path, "rb") as file:
            return file_fingerprint(file)

    return {"memory": patiently("read", difficulty.memory_path, fs, digest)}
