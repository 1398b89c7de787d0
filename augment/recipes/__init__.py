"""Recipes: small programs of calls that make one thought. The table of them.

A recipe is an async function of a segment's view and of what asks for generations (`protocol.Generate`); it returns the
generation that is the thought, or a text of its own. It has to walk the same way whenever its generations are the same:
so a run that was killed is walked again from the ledger, and no call that has ended is made twice. Recipes know nothing
of feeding, ledger or Beam. To add one, write it in a module here and name it in `BUILT_IN`; a user's own is named by
its file, as in `recipe: "my_recipe.py:name"`.
"""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any

from augment.recipes.protocol import Recipe
from sharding.errors import RequestError
from sharding.own_code import code_digest, load_named

SINGLE = "single"
"""The recipe of one call, which is made without walking any: its keys are those of the prompt."""

BUILT_IN = {
    "refine": "augment.recipes.refine:refine",
    "branch": "augment.recipes.branch:branch",
}
"""Names a config can use beside `SINGLE`, and where they are."""

PROMPTS = {
    "refine": {"critique": "critique", "rewrite": "rewrite"},
    "branch": {"choice": "choice", "critique": "critique", "rewrite": "rewrite"},
}
"""The prompt of each step of a built-in recipe that isn't the tier's; the draft's is."""

STEPS = {name: ("draft", *prompts) for name, prompts in PROMPTS.items()}
"""The steps of each built-in recipe, for `budget.tiers.N.steps`."""


@lru_cache(maxsize=16)
def load_recipe(name: str) -> Recipe:
    """A built-in recipe by name, or the user's own as "file.py:name" or "module:name".

    A class is made without arguments, and its `__call__` is the recipe.

    Raises:
        RequestError: there is no such recipe, or it is no async function of two arguments.
    """
    full = BUILT_IN.get(name, name)
    if ":" not in full:
        raise RequestError(
            f"budget.tiers.N.recipe: {name!r} is none of {', '.join([SINGLE, *BUILT_IN])}; one of your own is named as "
            '"file.py:name" or "module:name"'
        )
    found = load_named(full, "recipe", "budget.tiers.N.recipe")
    try:
        recipe: Any = found() if inspect.isclass(found) else found
    except TypeError as error:
        raise RequestError(f"budget.tiers.N.recipe: {name!r} can't be loaded: {error}") from error
    if not inspect.iscoroutinefunction(recipe if inspect.isfunction(recipe) else vars(type(recipe)).get("__call__")):
        raise RequestError(f"budget.tiers.N.recipe: {name!r} is no async function of (segment, generate)")
    checked: Recipe = recipe
    return checked


def recipe_digest(name: str) -> str:
    """A hash of the file of a user's own recipe, so that a changed one is asked anew; "" for the others."""
    return code_digest(name) if name not in (SINGLE, *BUILT_IN) else ""
