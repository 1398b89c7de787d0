"""The runs of recipes of one bundle: each is walked from answer to answer, and holds no slot while it waits.

What a run knows already, of earlier runs of the mill or of a bundle that failed, it is answered from the ledger; the
rest goes to the engines, with what the run has still ahead as its length, so that long runs begin first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

from augment.feeding.tickets import Completed, Failure, Partial, Result
from augment.feeding.worker import Worker
from augment.recipes.protocol import Call, NothingLeft, Recipe, RecipeRequest, SegmentView
from augment.recipes.walk import End, Walk
from augment.requests.calls import PlannedCall, RecipePlanner, outcome_row
from augment.requests.prompts import NoRoom
from sharding.errors import RequestError
from sharding.models.tokenizer import UnencodableText
from sharding.records.types import LedgerRow, Request, sample_key


@dataclass(eq=False)
class Run:
    """A recipe at work on a segment."""

    request: Request
    sample: int
    walk: Walk
    known: dict[str, LedgerRow]
    compose: bool = True  # a row of what comes of it
    rows: dict[str, LedgerRow] = field(default_factory=dict)
    ended: bool = False

    @property
    def key(self) -> str:
        """The ledger key of what comes of it."""
        return sample_key(self.request.request_key, self.sample)


@dataclass(frozen=True, eq=False)
class Pending:
    """A call of a run at an engine: the context of its job."""

    run: Run
    planned: PlannedCall

    def row(self, planner: RecipePlanner, result: Completed | Partial) -> LedgerRow:
        """The ledger row of what came."""
        return planner.call_row(
            self.run.request,
            self.run.sample,
            self.planned,
            result.generation,
            wall_s=result.wall_s,
            finished_at=result.finished_at,
        )


@dataclass(frozen=True)
class Counted:
    """Tokens of a call, made by this run or found: what it generated, and those of its prompt."""

    tokens: int
    prompt_tokens: int
    found: bool


@dataclass(frozen=True)
class Ended:
    """A run has come to its end.

    Attributes:
        row: what came of it; None where it failed, or where no row was asked for.
        text: the same in words.
        error: why it failed. may_pass: whether another try may have more luck.
    """

    request: Request
    key: str
    row: LedgerRow | None
    text: str = ""
    error: str = ""
    may_pass: bool = False


@dataclass(frozen=True)
class Asked:
    """A call that an engine is to make: for the caller to hand on.

    Attributes:
        model: name of the model in the config.
        pending: the context that its result comes back with.
    """

    model: str
    planned: PlannedCall
    pending: Pending


Outcome = Asked | Counted | Ended


class RecipeRuns:
    """Walks the runs of one bundle.

    Args:
        planner: turns calls into generations.
        worker: knows what is finished, and takes what came of runs.
    """

    def __init__(self, planner: RecipePlanner, worker: Worker) -> None:
        self._planner, self._worker = planner, worker
        self._asked: dict[str, list[Pending]] = {}  # by key: runs that wait for a call which another has asked for

    def begin(self, request: Request, sample: int) -> Iterator[Outcome]:
        """Begin a run.

        Raises:
            RequestError: the recipe's code is wrong.
            MillError: an engine failed for good.
        """
        walk = self.walk(self._planner.recipe(request.tier), request)
        yield from self.start(request, sample, walk, request.known)

    def walk(self, asked: RecipeRequest, request: Request, recipe: Recipe | None = None) -> Walk:
        """A walk over what a request shows.

        Raises:
            RequestError: the recipe can't be loaded.
        """
        view = SegmentView(text=request.text, context=request.context, focus=tuple(request.focus))
        return Walk(asked, view, recipe)

    def start(
        self, request: Request, sample: int, walk: Walk, known: Iterable[LedgerRow], *, compose: bool = True
    ) -> Iterator[Outcome]:
        """Begin a run that is walked in a way of its own.

        Args:
            known: rows of calls that have been made.
            compose: whether what comes of it is a row of the ledger.

        Raises:
            RequestError, MillError: as `begin`.
        """
        run = Run(request, sample, walk, {row.key: row for row in known if row.sample == sample}, compose)
        yield from self._go_on(run, run.walk.begin)

    def take(self, result: Result) -> Iterator[Outcome]:
        """What follows from the result of a call.

        Raises:
            RequestError, MillError: as `begin`.
        """
        first: Pending = result.context
        for pending in (first, *self._asked.pop(first.planned.key, ())):
            run = pending.run
            if isinstance(result, Failure):
                yield from self._fail(run, result.error, may_pass=result.may_pass)
                continue
            row = pending.row(self._planner, result)
            bought = row.thought_tokens - result.found_tokens if pending is first else 0
            if bought < row.thought_tokens:
                read = 0 if pending is first else row.prompt_tokens  # what was begun before has its prompt once
                yield Counted(row.thought_tokens - bought, read, found=True)
            if pending is first:
                yield Counted(bought, row.prompt_tokens, found=False)
            if not run.ended:
                yield from self._go_on(run, partial(self._answer, run, pending.planned.call, row))

    def _answer(self, run: Run, call: Call, row: LedgerRow) -> tuple[Call, ...] | End:
        run.rows[row.key] = row
        return run.walk.answer(call, call.made(row))

    def _go_on(self, run: Run, walk: Callable[[], tuple[Call, ...] | End]) -> Iterator[Outcome]:
        """Walk on, and ask for what is wanted, until nothing of it is known."""
        steps = [walk]
        while steps and not run.ended:
            try:
                wanted = steps.pop()()
                if isinstance(wanted, End):
                    yield self._end(run, wanted)
                    return
                planned = [
                    self._planner.planned_call(run.request, run.sample, call, self._ahead(run)) for call in wanted
                ]
            except (NothingLeft, NoRoom, UnencodableText) as error:
                yield from self._fail(run, str(error), may_pass=False)
                return
            for one in planned:
                row = run.known.get(one.key) or self._worker.finished.row(one.key)
                if row is None and one.key in self._asked:  # such as the verdict on a thought that two documents share
                    self._asked[one.key].append(Pending(run, one))
                elif row is None:
                    self._asked[one.key] = []
                    yield Asked(one.call.model, one, Pending(run, one))
                else:
                    # What an earlier attempt of this run has made, it has paid for. A verdict may be another's.
                    found = one.key in run.known or not run.compose
                    yield Counted(row.thought_tokens, row.prompt_tokens, found)
                    steps.append(partial(self._answer, run, one.call, row))

    def _ahead(self, run: Run) -> float:
        """Tokens that the run is expected to take from here on."""
        expected = run.request.expected_tokens
        if run.compose:
            expected = self._worker.run_lengths.expected(self._planner.kind(run.request), expected)
        return max(0.0, expected - run.walk.generate.spent)

    def _end(self, run: Run, end: End) -> Ended:
        run.ended = True
        if not run.compose:
            return Ended(run.request, run.key, None, end.text)
        if not run.rows:
            raise RequestError(f"the recipe of tier {run.request.tier} ended without a generation")
        version = self._planner.prompt_version(run.request)
        row = outcome_row(run.request, run.sample, end, list(run.rows.values()), version)
        self._worker.run_lengths.note(self._planner.kind(run.request), row.thought_tokens)
        self._worker.keep(row)
        return Ended(run.request, run.key, row, end.text)

    def _fail(self, run: Run, error: str, *, may_pass: bool) -> Iterator[Outcome]:
        if not run.ended:
            run.ended = True
            run.walk.close()
            self._worker.note_failed_run(run.key, error, may_pass=may_pass)
            yield Ended(run.request, run.key, None, "", error, may_pass)
