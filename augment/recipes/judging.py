"""What a judge does: it thinks about a thought before it grades it, or about two before it says which is better.

Both are recipes whose outcome is a verdict as JSON. What can't be read is asked once more; then it counts as none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from augment.recipes.protocol import Generate, Made, Recipe, SegmentView

JUDGE_STEP, MATCH_STEP = "select-judge", "select-match"
"""The steps of a judge's calls in the ledger."""

HIGHEST_GRADE = 10.0
RETRY_TEMPERATURE = 0.6
"""Of a second try: at a temperature of 0 it would say the same again."""

_GRADE = re.compile(r"\bgrade\b\W{0,12}(\d{1,2}(?:\.\d{1,2})?)(?![\d.]*\d)", re.IGNORECASE)
_BETTER = re.compile(r"\bbetter\b\W{0,12}(first|second)\b", re.IGNORECASE)


def is_verdict(step: str) -> bool:
    """Whether a step of a ledger row is a judge's."""
    return step.startswith((JUDGE_STEP, MATCH_STEP))


def grade_of(text: str) -> float | None:
    """The last grade that a judge names, from 0 to 10; None where it names none."""
    named = [float(found) for found in _GRADE.findall(text)]
    return named[-1] if named and named[-1] <= HIGHEST_GRADE else None


def better_of(text: str) -> int | None:
    """Which of two thoughts a judge calls better in the end: 0, 1, or None."""
    named = _BETTER.findall(text)
    return None if not named else int(named[-1].lower() == "second")


def grading(thought: Made, prompt: str, max_tokens: int, temperature: float) -> Recipe:
    """Grades a thought: {"grades": [number or null], "unreadable": answers that were none}."""

    async def grade(segment: SegmentView, generate: Generate) -> str:
        unreadable = 0
        for step, heat in ((JUDGE_STEP, temperature), (f"{JUDGE_STEP} 2", max(temperature, RETRY_TEMPERATURE))):
            verdict = await generate(
                step, prompt=prompt, max_tokens=max_tokens, temperature=heat, wants="answer", thought=thought
            )
            if (found := grade_of(verdict.text)) is not None:
                return json.dumps({"grades": [found], "unreadable": unreadable})
            unreadable += 1
        return json.dumps({"grades": [None], "unreadable": unreadable})

    return grade


def knock_out(thoughts: Sequence[Made], prompt: str, max_tokens: int, temperature: float) -> Recipe:
    """Lets thoughts meet two by two until one is left, each pair in both orders.

    The grade of a thought is how many rounds it came through. Where the orders don't agree, or neither can be read,
    the earlier thought goes on. {"grades": [...], "unreadable": n, "compared": pairs read in both orders, "agreed": n}.
    """

    async def compare(generate: Generate, one: Made, other: Made, counts: dict[str, int]) -> Made:
        found = []
        for first, second in ((one, other), (other, one)):
            better = None
            for heat in (temperature, max(temperature, RETRY_TEMPERATURE)):
                verdict = await generate(
                    MATCH_STEP,
                    prompt=prompt,
                    max_tokens=max_tokens,
                    temperature=heat,
                    wants="answer",
                    first=first,
                    second=second,
                )
                if (better := better_of(verdict.text)) is not None:
                    break
                counts["unreadable"] += 1
            found.append(None if better is None else (first, second)[better])
        if None not in found:
            counts["compared"] += 1
            counts["agreed"] += found[0] is found[1]
        named = {made.key for made in found if made is not None}
        return other if named == {other.key} else one

    async def play(segment: SegmentView, generate: Generate) -> str:
        counts = {"unreadable": 0, "compared": 0, "agreed": 0}
        rounds = dict.fromkeys((made.key for made in thoughts), 0)
        left = list(thoughts)
        while len(left) > 1:
            winners = [await compare(generate, *pair, counts) for pair in zip(left[::2], left[1::2], strict=False)]
            for winner in winners:
                rounds[winner.key] += 1
            left = winners + left[len(winners) * 2 :]
        grades = [float(rounds[made.key]) for made in thoughts] if counts["compared"] else [None for _ in thoughts]
        return json.dumps({"grades": grades, **counts})

    return play
