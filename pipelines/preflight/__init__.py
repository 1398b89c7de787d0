"""Preflight: what would keep later stages from working, told before the first one begins, all at once.

    config ─► Subject ─► every check of CHECKS that a stage to come needs ─► problems ─► one error that lists them

Scoring may take hours; that a prompt's name is mistyped, a price is missing, the generator's package isn't installed or
its server is another one can be known before. What follows from the config is looked at for every stage that is still
to come, wherever it will run. What hangs on this machine, its packages, its environment, its disk, is looked at for the
stages that are made here alone: what other machines have can't be told from here. Where a stage is asked for by itself,
what this machine lacks for those after it is a warning (`ahead`): they may be made elsewhere. Imports no Beam, so that
a plan is there at once. To add a check, write a function that yields problems and give it a line in `CHECKS`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from pipelines.config import MillConfig
from pipelines.own_files import refuse_own_files
from pipelines.preflight import machine, names, room
from pipelines.preflight.subject import Subject
from sharding import sources
from sharding.errors import MillError, restated
from sharding.storage.manifest import STAGES


@dataclass(frozen=True)
class Check:
    """A row of the table.

    Attributes:
        find: yields what is wrong.
        stages: those that can't end well with it.
        here: it hangs on the machine that makes the stage.
    """

    find: Callable[[Subject], Iterator[MillError]]
    stages: tuple[str, ...]
    here: bool = False


CHECKS = (
    Check(names.further_round, ("score", "augment")),
    Check(names.prompts, ("augment",)),
    Check(names.prices, ("augment",)),
    Check(names.own_code, ("augment", "select")),
    Check(names.benchmarks, ("select",), here=True),
    Check(names.lent_scores, ("score",)),
    Check(names.searched_corpus, ("augment",)),
    Check(names.stored_memory, ("score",), here=True),
    Check(machine.training_tokenizer, ("score", "augment", "select", "pack"), here=True),
    Check(machine.scorer, ("score",), here=True),
    Check(machine.gain_scorer, ("select",), here=True),
    Check(machine.generators, ("augment", "select"), here=True),
    Check(machine.passages, ("augment",), here=True),
    Check(machine.value, ("augment", "select"), here=True),
    Check(machine.delimiters, STAGES, here=True),
    Check(room.writable, STAGES, here=True),
    Check(room.disk, STAGES, here=True),
)
"""All that is looked at, in the order in which it is told."""


def problems(
    config: MillConfig,
    stages: Sequence[str],
    *,
    here: Collection[str] | None = None,
    source_bytes: int | None = None,
) -> list[MillError]:
    """What would keep stages from working.

    Args:
        config: the run.
        stages: those that are to be made.
        here: those of them that are made on this machine; None: all.
        source_bytes: of text in the sources, where that is known.
    """
    made_here = stages if here is None else here
    subject = Subject(config, tuple(made_here), source_bytes)
    found: list[MillError] = []
    for check in CHECKS:
        # A run goes on to the end: what follows from the config alone will be wrong there too.
        to_come = made_here if check.here else STAGES[STAGES.index(stages[0]) :] if stages else ()
        if not set(check.stages).isdisjoint(to_come):
            found += check.find(subject)
    return found


def check(
    config: MillConfig,
    stages: Sequence[str],
    *,
    here: Collection[str] | None = None,
    source_bytes: int | None = None,
) -> None:
    """Refuse to begin what can't end well; see `problems`.

    Raises:
        RequestError: the config or the environment is wrong; names every key.
        MillError: a package is absent, or there is no room.
    """
    found = problems(config, stages, here=here, source_bytes=source_bytes)
    if found and source_bytes is None and "score" in (stages if here is None else here):
        found += source_problems(config)  # nothing is lost by the time it takes: there will be no run
    _refuse(found)


def ahead(config: MillConfig, stages: Sequence[str]) -> list[str]:
    """What would keep stages that nobody has asked for yet from being made on this machine, in words.

    Args:
        config: a run in which `check` found nothing.
        stages: those that follow.
    """
    if not stages:
        return []
    told = dict.fromkeys(str(problem) for problem in problems(config, stages))
    names = " and ".join(", ".join(stages).rsplit(", ", 1))
    return [f"{text} (here; {names} may be made on another machine)" for text in told]


@contextlib.contextmanager
def told_together(config: MillConfig, stages: Sequence[str], *, here: Collection[str] | None = None) -> Iterator[None]:
    """What goes wrong within is told with all else that would: see `check`."""
    try:
        yield
    except MillError as error:
        found = [error, *problems(config, stages, here=here)]
        if len(found) == 1:
            raise
        _refuse(found, error)


def check_all(config: MillConfig) -> None:
    """The same of a whole run on this machine, and of its sources.

    Raises: as `check`.
    """
    _refuse([*problems(config, STAGES), *source_problems(config)])


def source_problems(config: MillConfig) -> Iterator[MillError]:
    """Sources that can't be read, as far as a listing and a look at the beginning of each file tell."""
    if config.scored is not None:
        return
    try:
        refuse_own_files(config)
    except MillError as error:
        yield error
    for source in config.all_sources:
        try:
            sources.resolve(source, identify=False)
        except MillError as error:
            yield error


def _refuse(found: Sequence[MillError], cause: MillError | None = None) -> None:
    # The same thing may be found on two ways, the shorter of which says less.
    told = list(dict.fromkeys(str(problem) for problem in found))
    told = [text for text in told if not any(text != other and text in other for other in told)]
    if not told:
        return
    worst = max(found, key=lambda problem: problem.exit_code)
    many = f"{len(told)} things would keep the run from ending well:\n  " if len(told) > 1 else ""
    raise restated(worst, many + "\n  ".join(told)) from cause
