"""Scorers: what gives every token of a text its surprisal and entropy. One module each, named in `SCORERS`.

A scorer's module has `make(config)`, which gives the `Scorer` with its models loaded, and `describe(config)`, which
gives what decides its scores and loads nothing. The table is in `difficulty.config`, which checks the names.
"""

import importlib
from typing import Any

from difficulty.config import SCORERS, DifficultyConfig
from difficulty.scorers.protocol import Scorer
from sharding import tally


def make_scorer(config: DifficultyConfig) -> Scorer:
    """The scorer that the config asks for, its models loaded.

    Raises:
        MillError: a model can't be loaded, or can't score.
        RequestError: the config asks for what the model or the machine can't do.
    """
    with tally.at(f"loading the scorer {config.model or config.scorer}"):
        scorer: Scorer = _module(config).make(config)
    return scorer


def describe_scorer(config: DifficultyConfig) -> dict[str, Any]:
    """What decides the scores, for the manifest: scorer, models and their revisions, settings, versions. JSON types.

    Raises:
        MillError: a model is named by a path that doesn't exist.
    """
    described: dict[str, Any] = _module(config).describe(config)
    if config.token_measure == "beyond_entropy":
        described |= {"measure": config.token_measure}
    return described


def _module(config: DifficultyConfig) -> Any:
    # Imported when used: the machine that lists a source has no torch.
    return importlib.import_module(SCORERS[config.scorer].module)
