"""Scorers: what gives every token of a text its surprisal and entropy. The table of them."""

from typing import Any

from difficulty.config import DifficultyConfig
from difficulty.scorers.protocol import Scorer


def make_scorer(config: DifficultyConfig) -> Scorer:
    """The scorer that the config asks for, its models loaded.

    Raises:
        MillError: a model can't be loaded, or can't score.
        RequestError: the config asks for what the model or the machine can't do.
    """
    if config.scorer == "rehearsal":
        from difficulty.scorers.rehearsal import RehearsalScorer

        return RehearsalScorer()
    if config.scorer == "none":
        from difficulty.scorers.none import NoScorer

        return NoScorer()
    if config.scorer == "endpoint":
        from difficulty.scorers.endpoint import EndpointScorer

        return EndpointScorer(config)
    from difficulty.scorers.causal_lm import CausalLMScorer
    from difficulty.scorers.excess import ExcessLossScorer

    assert config.model is not None  # the config's validator has seen to it
    scorer = CausalLMScorer(config.model, config, revision=config.revision)
    if config.reference_model is None:
        return scorer
    return ExcessLossScorer(scorer, CausalLMScorer(config.reference_model, config))


def describe_scorer(config: DifficultyConfig) -> dict[str, Any]:
    """What decides the scores, for the manifest: scorer, models and their revisions, settings, versions. JSON types.

    Loads nothing; the number type is the one asked for, as "auto" is settled where the scorer runs.

    Raises:
        MillError: a model is named by a path that doesn't exist.
    """
    if config.scorer == "rehearsal":
        from difficulty.scorers.rehearsal import describe_rehearsal

        return describe_rehearsal()
    if config.scorer == "none":
        from difficulty.scorers.none import describe_none

        return describe_none()
    if config.scorer == "endpoint":
        from difficulty.scorers.endpoint import describe_endpoint

        return describe_endpoint(config)
    from difficulty.scorers.causal_lm import describe_causal_lm

    assert config.model is not None  # the config's validator has seen to it
    described = describe_causal_lm(config.model, config, revision=config.revision)
    if config.reference_model is None:
        return described
    reference = describe_causal_lm(config.reference_model, config)
    return {**described, "measure": "excess_loss", "reference": reference}
