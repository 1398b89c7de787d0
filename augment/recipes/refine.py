"""Refine: a draft, what a critic has to say of it, and the draft written again; as many rounds as the tier asks for.

The tier's cap is dealt out by weights: a critique gets half of what a text gets, and what a step leaves, the later ones
may use.
"""

from __future__ import annotations

from augment.recipes.protocol import Generate, Made, NothingLeft, SegmentView

CRITIQUE_WEIGHT = 0.5
ROUND_WEIGHT = 1 + CRITIQUE_WEIGHT


async def refine(segment: SegmentView, generate: Generate) -> Made:
    """Draft → critique → rewrite."""
    del segment  # prompts show it
    draft = await generate("draft", share=1 / (1 + ROUND_WEIGHT * generate.rounds))
    return await refined(draft, generate)


async def refined(draft: Made, generate: Generate) -> Made:
    """A draft after the tier's rounds of critique and rewriting; where the cap ends before them, as far as it came."""
    for number in range(1, generate.rounds + 1):
        weight = ROUND_WEIGHT * (generate.rounds - number + 1)
        time = f" {number}" if number > 1 else ""
        try:
            critique = await generate(
                f"critique{time}", prompt="critique", share=CRITIQUE_WEIGHT / weight, wants="answer", draft=draft
            )
            draft = await generate(
                f"rewrite{time}", prompt="rewrite", share=1 / (weight - CRITIQUE_WEIGHT), draft=draft, critique=critique
            )
        except NothingLeft:
            break
    return draft
