"""How long generations are, learned while a run goes on, so that the longest go first by what they are and not by what
a plan has guessed.

Nothing but the order of sending goes by it: what is asked, keys, seeds and texts don't know it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable

from augment.ledger.parts import ledger_parts, read_part
from augment.requests.keys import length_kind
from sharding.errors import MillError

logger = logging.getLogger(__name__)

PRIOR_GENERATIONS = 8
"""The plan's figure counts as much as so many generations that were measured."""

REMEMBERED_GENERATIONS = 64
"""What earlier runs have left in the ledger counts as much as so many at most: they may have had other caps."""

_PARTS = 2
_COLUMNS = ("tier", "model", "prompt_version", "thought_tokens", "step")

Measured = tuple[str, float, int]
"""Of generations of one kind: the kind, their mean length in tokens, how many they were."""


class LearnedLengths:
    """Mean lengths by kind of generation, shrunk to what is planned: (p · planned + sum) / (p + n).

    The mean, since what is to be short is the whole: the longest expected first. The first to finish are shorter than
    the rest, of every kind alike; the prior keeps them from turning the order. Safe to use from several threads.
    """

    def __init__(self, measured: Iterable[Measured] = ()) -> None:
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[float, int]] = {}  # sum of tokens, number
        self.begin_with(measured)

    def begin_with(self, measured: Iterable[Measured]) -> None:
        """Take what was measured before; of a kind that is known already, nothing."""
        with self._lock:
            for kind, mean_tokens, number in measured:
                counts = min(number, REMEMBERED_GENERATIONS)
                self._seen.setdefault(kind, (mean_tokens * counts, counts))

    def note(self, kind: str, tokens: int) -> None:
        """A generation of this kind has taken so many tokens. Nothing is learned of the kind ""."""
        if kind:
            with self._lock:
                total, number = self._seen.get(kind, (0.0, 0))
                self._seen[kind] = total + tokens, number + 1

    def expected(self, kind: str, planned: float) -> float:
        """Tokens that a generation is expected to take whose plan says so many."""
        return self.expected_of_all(kind, planned, 1)

    def expected_of_all(self, kind: str, planned: float, number: int) -> float:
        """The same of several together, whose plans add up to so many tokens."""
        total, seen = self._seen.get(kind, (0.0, 0))
        return (PRIOR_GENERATIONS * planned + number * total) / (PRIOR_GENERATIONS + seen)


def measured_in(ledger_url: str) -> tuple[Measured, ...]:
    """What the last parts of a ledger say of the lengths of generations, and of whole runs of recipes, by kind.

    Nothing where it can't be read: whoever needs its rows finds out.
    """
    seen: dict[str, tuple[int, int]] = {}
    try:
        for url in ledger_parts(ledger_url)[-_PARTS:]:
            for row in read_part(url, _COLUMNS) or ():
                if not row.step:
                    kind = length_kind(row.tier, row.model, row.prompt_version)
                    total, number = seen.get(kind, (0, 0))
                    seen[kind] = total + row.thought_tokens, number + 1
    except MillError as error:
        logger.info("expected lengths are those of the plan at first: %s", error)
    return tuple((kind, total / number, number) for kind, (total, number) in sorted(seen.items()))
