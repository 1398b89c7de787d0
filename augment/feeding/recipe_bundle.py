"""One bundle's runs of recipes that one model makes, fed as the augment stage feeds its generations. Without Beam.

For what is asked about a document or a trace beside the thoughts themselves: contractions, verdicts. What comes of a
run is told to whoever asked; the ledger has its calls.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from augment.feeding import registry
from augment.feeding.config import FeedingConfig
from augment.feeding.feeder import Feeder
from augment.feeding.recipe_runs import Asked, Counted, Ended, Outcome, RecipeRuns
from augment.feeding.tickets import Completed, Partial, Result
from augment.feeding.worker import TooManyFailures, Worker, WorkOrder, begin_bundle
from augment.recipes.protocol import Recipe, RecipeRequest
from augment.requests.calls import RecipePlanner
from augment.requests.planner import TracePlanner
from sharding.errors import MillError
from sharding.records.types import LedgerRow, Request


class RecipeBundle:
    """`begin`, `start` each run, then `finish`; always `leave`, or `give_up` after an error.

    Args:
        planner: of the model; its tiers are those that requests name.
        model: name of the model in the config.
        feeding: the section of the config.
        order: the run of the mill.
    """

    def __init__(self, planner: TracePlanner, model: str, feeding: FeedingConfig, order: WorkOrder) -> None:
        self._planner, self._model, self._feeding, self._order = planner, model, feeding, order
        self._recipes = RecipePlanner(planner)
        self._feeder: Feeder | None = None
        self._worker: Worker | None = None  # stays, for what comes in after an error
        self._at_work = False

    def begin(self) -> None:
        """Begin.

        Raises:
            MillError: the run was stopped.
        """
        self._worker = begin_bundle(self._order)
        self._at_work = True
        model = self._planner.model(self._model)
        self._feeder = registry.acquire(model, self._feeding, job=self._order.run_id, name=self._model)
        self._ticket = self._feeder.ticket(self)
        self._runs = RecipeRuns(self._recipes, self._worker)

    def start(
        self, request: Request, sample: int, asked: RecipeRequest, recipe: Recipe, known: Iterable[LedgerRow]
    ) -> Iterator[Counted | Ended]:
        """Begin a run; what has come of it and of the others by now.

        Args:
            known: rows of calls that have been made.

        Raises:
            MillError: an engine failed for good, too much has failed, or the recipe's code is wrong.
        """
        walk = self._runs.walk(asked, request, recipe)
        yield from self._handed_on(self._runs.start(request, sample, walk, known, compose=False))
        yield from self._taken(self._ticket.take())

    def finish(self) -> Iterator[Counted | Ended]:
        """The rest, as it comes; all of it is durable then.

        Raises:
            MillError: as `start`, or the store refused.
        """
        assert self._worker is not None
        yield from self._taken(self._ticket.drain())
        self._worker.flush()

    def give_up(self, error: MillError) -> None:
        """End after an error, and keep what was paid for."""
        if isinstance(error, TooManyFailures) and self._feeder is not None:
            self._feeder.close(error)  # pays for no more; whoever shares the engine fails with the same error
        with contextlib.suppress(MillError):
            if self._worker is not None:
                self._worker.flush()
        self.leave()

    def leave(self) -> None:
        """End, well or not. Safe to call twice."""
        if self._at_work and self._worker is not None:
            self._at_work = False
            if self._feeder is not None:
                registry.release(self._feeder)
            self._worker.end()

    def keep(self, result: Result | Partial) -> None:
        """Take a call to the ledger, on the feeder's thread. One that was interrupted is asked for anew."""
        assert self._worker is not None
        if isinstance(result, Completed):  # a failure fails its run, which is noted when the run hears of it
            self._worker.keep(result.context.row(self._recipes, result))

    def _taken(self, results: Iterable[Result]) -> Iterator[Counted | Ended]:
        assert self._worker is not None
        for result in results:
            yield from self._handed_on(self._runs.take(result))
            self._worker.check_failures()

    def _handed_on(self, outcomes: Iterator[Outcome]) -> Iterator[Counted | Ended]:
        for outcome in outcomes:
            if isinstance(outcome, Asked):
                self._ticket.submit(outcome.planned.generation, outcome.pending)
            else:
                yield outcome
