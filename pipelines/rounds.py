"""A further round: another model reads the same documents, and the budget goes to what is still hard for that one.

    round 1: score with a model ─► augment ─► select ─► pack, which the model is trained on
    round 2: score with its checkpoint ─► augment, from the ledger of round 1 where it has the text ─► select ─► pack

A round is an output of its own that names the one before in `round.of`. What it takes from there is the ledger. Its
corpus holds the thoughts of its own allocation: a segment that has become easy is plain, since the thought about it is
in what the checkpoint has read; one that is asked about in the same way as before finds its trace, and buys none.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from pipelines.config import LedgerConfig, MillConfig, RoundConfig
from pipelines.scorer_identity import difficulty_section, model_inputs
from pipelines.watch.files import absolute, read_plan
from sharding.errors import MillError, RequestError
from sharding.models.tokenizer import load_tokenizer
from sharding.storage import manifest
from sharding.storage.manifest import Manifest
from sharding.storage.output import Output

_SEGMENTS = "segment_tokens"
"""The key of `difficulty` that has to stay, or the same places would be other segments."""


def in_round(config: MillConfig, number: int) -> MillConfig:
    """The config of a further round of a run: `--round NUMBER`.

    Its output is that of the first round with `-round-NUMBER` behind it, it is of the round before, and its ledger is
    that of the first.

    Args:
        config: of the first round, but for what this one does otherwise, such as the scorer.
        number: from 1, which is the config as it is.

    Raises:
        RequestError: the config is that of a further round itself.
    """
    if number == 1:
        return config
    if config.round is not None:
        raise RequestError(
            f"--round: the config says itself of which run it is a further round (round.of: {config.round.of}): leave "
            "out one of the two"
        )
    first = config.output.rstrip("/")
    return dataclasses.replace(
        config,
        output=_output_in(first, number),
        round=RoundConfig(of=_output_in(first, number - 1)),
        ledger=_with_path(config.ledger, Output(first).ledger),
    )


def _output_in(first: str, number: int) -> str:
    return first if number == 1 else f"{first}-round-{number}"


def _with_path(ledger: LedgerConfig, path: str) -> LedgerConfig:
    return ledger if ledger.path is not None else dataclasses.replace(ledger, path=path)


def check_round(config: MillConfig) -> None:
    """Refuse a further round that would not be one.

    Raises:
        RequestError: the earlier one has another tokenizer, other segments or the same scorer, or keeps its generations
            elsewhere; names the key.
        MillError: there is no earlier one.
    """
    if config.round is None:
        return
    of = config.round.of
    scored = manifest.require(of, "score")
    before, now = scored.config["difficulty"], difficulty_section(config.difficulty)
    if scored.inputs.get("tokenizer") != load_tokenizer(config.tokenizer).fingerprint:
        raise RequestError(f"tokenizer: {config.tokenizer!r} is another one than that of round.of={of}: use the same")
    if before.get(_SEGMENTS) != now[_SEGMENTS]:
        raise RequestError(
            f"difficulty.{_SEGMENTS}: is {now[_SEGMENTS]}, and {before.get(_SEGMENTS)} in round.of={of}: use the same"
        )
    models = model_inputs(config.difficulty)
    if before == now and all(scored.inputs.get(role) == digest for role, digest in models.items()):
        raise RequestError(
            f"round.of: {of} was scored by the same model in the same way, so nothing has changed since: name the "
            "checkpoint in difficulty.model"
        )
    plan = read_plan(of)
    if plan is not None and absolute(plan["ledger"]) != absolute(config.ledger_url):
        raise RequestError(
            f"ledger.path: the generations of round.of={of} are in {plan['ledger']}, and those of this round would "
            f"be in {config.ledger_url}: set ledger.path to the former, or all would be bought again"
        )


def round_facts(config: MillConfig, scored: Manifest) -> dict[str, Any] | None:
    """What the manifest and the card say of a further round, None of a first one.

    Args:
        scored: the scores of this round.
    """
    if config.round is None:
        return None
    try:
        earlier = manifest.require(config.round.of, "augment").facts.get("round") or {}
    except MillError:  # it was scored, and has generated nothing yet
        earlier = {}
    return {
        "number": int(earlier.get("number", 1)) + 1,
        "of": config.round.of,
        "scorer": scored.facts["scorer"],
    }
