"""Branch: several drafts side by side, a judge that chooses one of them, and the chosen one refined."""

from __future__ import annotations

import re

from augment.recipes.protocol import Generate, Made, SegmentView
from augment.recipes.refine import ROUND_WEIGHT, refined

CHOICE_WEIGHT = 0.25

_CHOICE = re.compile(r"\bchoice\b\W{0,12}(\d{1,2})\b", re.IGNORECASE)


async def branch(segment: SegmentView, generate: Generate) -> Made:
    """Drafts → choice → critique → rewrite. A choice that can't be read is the first draft."""
    del segment  # prompts show it
    share = 1 / (generate.drafts + CHOICE_WEIGHT + ROUND_WEIGHT * generate.rounds)
    each = int(generate.left * share)
    drafts = await generate.several([generate("draft", max_tokens=each) for _ in range(generate.drafts)])
    choice = await generate(
        "choice",
        prompt="choice",
        share=CHOICE_WEIGHT / (CHOICE_WEIGHT + ROUND_WEIGHT * generate.rounds),
        temperature=0.0,
        wants="answer",
        made_from=drafts,
        drafts="\n\n".join(f"Thought {number}:\n{draft.text}" for number, draft in enumerate(drafts, 1)),
    )
    return await refined(drafts[chosen(choice.text, len(drafts))], generate)


def chosen(text: str, number: int) -> int:
    """The place, from 0, of the draft that a choice names last; the first where it names none that is there."""
    named = [int(found) for found in _CHOICE.findall(text)]
    return named[-1] - 1 if named and 1 <= named[-1] <= number else 0
