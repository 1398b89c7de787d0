"""What of a tier's recipe decides its texts: the key of its runs, and the prompts and models of its steps. Pure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from augment.recipes import PROMPTS, recipe_digest
from augment.recipes.protocol import RecipeRequest
from sharding.hashing import fingerprint


def step_prompts(recipe: RecipeRequest) -> dict[str, str]:
    """Step → prompt, as far as the config and the built-in recipes tell; the tier's is not among them."""
    named = {step: told.prompt for step, told in recipe.steps.items() if told.prompt is not None}
    return PROMPTS.get(recipe.name, {}) | named


def step_models(recipe: RecipeRequest) -> list[str]:
    """The models of the steps beside the tier's."""
    return sorted({told.model for told in recipe.steps.values() if told.model is not None} - {recipe.model})


def recipe_key(recipe: RecipeRequest, prompt_key: str, shown: Sequence[str], models: Mapping[str, Any]) -> str:
    """The key shared by all runs of a recipe on a segment.

    Args:
        prompt_key: `request_key` of the tier's prompt under the tier's cap.
        shown: all that the prompts of its steps may show.
        models: `what_decides_text` of the models of its steps, by name.

    Returns:
        32 hex digits.
    """
    steps = {step: dataclasses.asdict(told) for step, told in sorted(recipe.steps.items())}
    code = recipe_digest(recipe.name)
    said = {
        # A file is known by what is in it: one that was moved is the same recipe, and its calls aren't bought again.
        "recipe": recipe.name.rpartition(":")[2] if code else recipe.name,
        "code": code,
        "rounds": recipe.rounds,
        "drafts": recipe.drafts,
        "steps": steps,
        "models": {name: models[name] for name in step_models(recipe)},
        "shown": fingerprint([part for text in shown for part in (text, "\0")]),
    }
    told = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)
    return fingerprint([prompt_key, "\0", told])
