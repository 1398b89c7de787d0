"""The prompts that a plan reckons with: those of the sample's segments, and those by which documents are contracted."""

from __future__ import annotations

import dataclasses
from functools import partial

import msgspec
import numpy as np

from augment.contexts.finding import AsLongAsPassages
from augment.requests.ahead import prompt_tokens_ahead
from augment.requests.calls import RecipePlanner
from augment.requests.contexts import Contexts
from augment.requests.contraction import as_long_as_contractions
from augment.requests.planner import TracePlanner
from difficulty.budget.allocation import Allocation
from pipelines.config import MillConfig
from pipelines.joints import Choices, TierGains, holdback_of, trace_planner
from pipelines.plan.corpus import Evidence
from sharding.models.tokenizer import TextTokenizer, load_tokenizer
from sharding.records.types import Request


def prompt_requests(
    config: MillConfig, evidence: Evidence, allocation: Allocation, gains: TierGains | None = None
) -> list[tuple[int, int, Request]]:
    """(document, tier, request) of the sample's segments that think, counted in training tokens.

    Those of tiers with a recipe have the tokens of the prompts of all its calls, if each takes what the tier is
    expected to take of its cap.
    """
    planner = _planner(config)
    recipes = RecipePlanner(planner)
    choices = Choices(allocation, holdback_of(config), gains)
    numbers = {tier.name: number for number, tier in enumerate(config.budget.tiers)}
    found = []
    tokenizer = load_tokenizer(config.tokenizer)
    for number, document in enumerate(evidence.sample):
        contexts = Contexts(
            contractions=as_long_as_contractions(planner, document.segments, tokenizer),
            passages=AsLongAsPassages(tokenizer.decode(document.segments[0].input_ids)),
        )
        ids = np.concatenate([segment.input_ids for segment in document.segments])
        text_of = partial(_text_of, tokenizer, ids)
        for request in planner.requests(document.segments, choices, contexts):
            if not isinstance(request, Request):
                continue
            if planner.tier(request.tier).recipe is not None:
                share = request.expected_tokens / request.max_tokens
                read = prompt_tokens_ahead(recipes, request, text_of, share)
                request = msgspec.structs.replace(request, prompt_tokens=read)
            found.append((number, numbers[request.tier], request))
    return found


def contraction_prompts(config: MillConfig, contractions: np.ndarray, source_tokens: np.ndarray) -> np.ndarray:
    """Tokens of the prompts by which so many contractions are made, at most: (1 + DRAWS,) float64.

    Each shows a segment, what was contracted before it, and the template.
    """
    asked = (planner := _planner(config)).contraction
    if asked is None:
        return np.zeros_like(contractions)
    builder = planner.builder(asked.model, asked.prompt, ("contraction", "words"))
    frame = len(
        builder.build("a", max_tokens=asked.max_tokens, fillings={"contraction": "a", "words": "100"}).token_ids
    )
    return np.where(contractions > 0, source_tokens, 0.0) + contractions * (frame + asked.max_tokens)


def _planner(config: MillConfig) -> TracePlanner:
    """The run's planner with all generators as if their tokens were those of training.

    Their own tokenizers and chat templates take seconds to load and change a prompt's length by little.
    """
    planner = trace_planner(config)
    for name, model in planner.models.items():
        planner.models[name] = dataclasses.replace(
            model, engine="rehearsal", urls=(), served_name=None, api_key_env=None, engine_args={}
        )
    return planner


def _text_of(tokenizer: TextTokenizer, ids: np.ndarray, number: int) -> str:
    """A text of about so many tokens, of a document of these, (tokens,)."""
    return tokenizer.decode(np.resize(ids, number))
