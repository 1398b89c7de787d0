"""Contracts documents, for tiers that show a contraction in place of the document before a segment. Without Beam.

A document's calls follow each other, those of different documents go side by side, and a document that waits for its
next one holds no slot of the engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from augment.feeding.config import FeedingConfig
from augment.feeding.recipe_bundle import RecipeBundle
from augment.feeding.recipe_runs import Counted, Ended
from augment.feeding.worker import WorkOrder
from augment.recipes.contracting import contracting
from augment.requests.contraction import contraction_planner, contraction_recipe
from augment.requests.planner import TracePlanner
from sharding.errors import MillError
from sharding.records.types import LedgerRow, Request

Subject = TypeVar("Subject")


@dataclass
class Contracted(Generic[Subject]):
    """A document with its contractions.

    Attributes:
        subject: as given to `take`.
        contractions: of the document up to and with each segment, from the first; fewer than asked for where a call
            failed.
        error: why it failed; "" where none did.
    """

    subject: Subject
    contractions: list[str] = field(default_factory=list)
    error: str = ""


class Contractor(Generic[Subject]):
    """Contracts the documents of one bundle. `begin`, `take` each, then `finish`; always `leave` or `give_up`.

    Args:
        planner: of the run's tiers, some of which show contractions.
        feeding: the section of the config.
        order: the run.
    """

    def __init__(self, planner: TracePlanner, feeding: FeedingConfig, order: WorkOrder) -> None:
        assert planner.contraction is not None
        self._planner, self._asked = planner, planner.contraction
        self._bundle = RecipeBundle(contraction_planner(planner), self._asked.model, feeding, order)
        self._waiting: dict[int, Contracted[Subject]] = {}  # by the request of their run

    def begin(self) -> None:
        """Begin a bundle.

        Raises:
            MillError: the run was stopped.
        """
        self._bundle.begin()

    def take(
        self, subject: Subject, request: Request, texts: Sequence[str], known: Iterable[LedgerRow]
    ) -> Iterator[Contracted[Subject] | dict[str, int]]:
        """Ask for the contractions of a document; the documents that have theirs by now, and counts.

        Args:
            subject: what is given back with them.
            request: from `contraction_request`.
            texts: its segments, as many as are to be contracted.
            known: rows of calls that were made before.

        Raises:
            MillError: the engine failed for good, or too much has failed.
        """
        made: Contracted[Subject] = Contracted(subject)
        self._waiting[id(request)] = made
        recipe = contracting(texts, self._asked.prompt, self._asked.max_tokens, made.contractions)
        asked = contraction_recipe(self._planner, len(texts))
        yield from self._outcomes(self._bundle.start(request, 0, asked, recipe, known))

    def finish(self) -> Iterator[Contracted[Subject] | dict[str, int]]:
        """The rest, as they come; all of them are durable then.

        Raises:
            MillError: as `take`, or the store refused.
        """
        yield from self._outcomes(self._bundle.finish())

    def give_up(self, error: MillError) -> None:
        """End after an error, and keep what was paid for."""
        self._bundle.give_up(error)

    def leave(self) -> None:
        """End the bundle, well or not. Safe to call twice."""
        self._bundle.leave()

    def _outcomes(self, outcomes: Iterator[Counted | Ended]) -> Iterator[Contracted[Subject] | dict[str, int]]:
        for outcome in outcomes:
            if isinstance(outcome, Counted):
                when = "found" if outcome.found else "now"
                yield {
                    f"contractions_{when}": 1,
                    f"contraction_tokens_{when}": outcome.tokens,
                    f"contraction_prompt_tokens_{when}": outcome.prompt_tokens,
                }
                continue
            made = self._waiting.pop(id(outcome.request))
            made.error = outcome.error
            yield made
