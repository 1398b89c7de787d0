"""How many tokens of prompts the calls of a recipe are going to read, before one of them has answered. Pure."""

from __future__ import annotations

from collections.abc import Callable

from augment.recipes.protocol import Call, Made, NothingLeft, SegmentView
from augment.recipes.walk import End, Walk
from augment.requests.calls import RecipePlanner
from sharding.errors import RequestError
from sharding.models.tokenizer import UnencodableText
from sharding.records.types import Request

MOST_CALLS = 64
"""A recipe of one's own may go on for as long as it doesn't like what it reads."""


def prompt_tokens_ahead(
    planner: RecipePlanner, request: Request, text_of: Callable[[int], str], share: float = 1.0
) -> int:
    """Tokens of the prompts of all calls of a run of a request's recipe, if each call takes `share` of its cap.

    The recipe is walked with answers that say nothing: of as many tokens as that, and without a choice in them. Where
    it can't go on from these, as where the cap is spent, what was asked up to there counts.

    Args:
        planner: of a tier with a recipe.
        text_of: a text of so many tokens.
        share: above 0, at most 1.
    """
    recipe = planner.recipe(request.tier)
    walk = Walk(recipe, SegmentView(text=request.text, context=request.context, focus=tuple(request.focus)))
    waiting: list[Call] = []
    found = number = 0
    try:
        wanted = walk.begin()
        while not isinstance(wanted, End) and number < MOST_CALLS:
            waiting += wanted
            call = waiting.pop(0)
            found += len(planner.planned_call(request, 0, call, 0.0).generation.prompt_token_ids)
            tokens = max(1, round(share * call.max_tokens))
            answer = Made(key=str(number), step=call.step, text=text_of(tokens), tokens=tokens, closed="natural")
            number += 1
            wanted = walk.answer(call, answer)
    except (NothingLeft, RequestError, UnencodableText):
        pass  # told when it runs, of the segment that it happens to
    finally:
        walk.close()
    return found
