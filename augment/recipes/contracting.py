"""Contracting: a document in few words, written segment by segment, each time from the words so far and what follows.

A prompt that holds them in place of the document before its segment is as long at the end of a book as on its first
page (memoryless thinking, as in Atom of Thoughts, arXiv 2502.12018).
"""

from __future__ import annotations

from collections.abc import Sequence

from augment.recipes.protocol import Generate, Made, Recipe, SegmentView

CONTRACTION_STEP = "context-contraction"
"""The step of such calls in the ledger."""

WORDS_PER_TOKEN = 0.6
"""What a prompt may ask for, so that the cap is seldom reached: English takes about 0.75."""


def contracting(texts: Sequence[str], prompt: str, max_tokens: int, contractions: list[str]) -> Recipe:
    """Contracts a document, as far as it is given.

    Args:
        texts: its segments, from the first.
        max_tokens: cap on each contraction.
        contractions: takes them, one for each text: that of the document up to and with it. A contraction that says
            nothing leaves the one before in its place. Where a call fails, those before it are there.
    """

    async def contract(segment: SegmentView, generate: Generate) -> str:
        del segment  # each call is about another one
        so_far: list[Made] = []
        for text in texts:
            made = await generate(
                CONTRACTION_STEP,
                prompt=prompt,
                max_tokens=max_tokens,
                wants="answer",
                about=text,
                made_from=so_far,
                contraction=so_far[0].text if so_far else "",
                words=str(int(max_tokens * WORDS_PER_TOKEN)),
            )
            if made.text.strip():
                so_far = [made]
            contractions.append(so_far[0].text.strip() if so_far else "")
        return contractions[-1]

    return contract
