"""The whole flow: score, augment, select, pack. `mill` is also the API for Python."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from pipelines.config import MillConfig, Workers
from sharding.errors import RequestError
from sharding.storage import manifest
from sharding.storage.manifest import STAGES, Manifest

if TYPE_CHECKING:
    from pipelines.stage import Did, Stage

logger = logging.getLogger(__name__)

OnStage = Callable[[str, Manifest | None, "Did | None"], None]


def mill(
    config: MillConfig,
    *,
    stages: Sequence[str] = STAGES,
    beam_args: Sequence[str] = (),
    workers: Workers | None = None,
    replace: bool = False,
    force: bool = False,
    on_stage: OnStage = lambda stage, manifest, did: None,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr),  # noqa: T201
) -> dict[str, Manifest]:
    """Run stages in order, skipping those that are done.

    Where sources have only grown since they were scored, and the rest of the config is the same, stages are made again
    as with `replace` (`pipelines.growing`).

    Args:
        config: the run.
        stages: which of `STAGES`; each needs the results of those before it.
        beam_args: Beam options, such as "--runner=...".
        workers: worker processes of Beam's local runner; None: what the config says.
        replace: make stages again that another config has made in this output.
        force: make them again whatever made them; what is in the ledger is not generated again.
        on_stage: called with (stage, None, None) when a stage that isn't done begins, and with (stage, its manifest,
            what was done) after every stage.
        say: is told, a line each, what is about to be done that the config doesn't tell: that sources have grown, what
            a pilot will cost.

    Returns:
        The manifest of each stage asked for.

    Raises:
        RequestError: the request was wrong.
        MillError: a stage failed, or the preflight found that one would.
    """
    # Imported here: Beam takes a second, and `--help` and `verify` do without.
    from pipelines import preflight
    from pipelines.augment import Augment
    from pipelines.beam_options import beam_options, works_here
    from pipelines.borrowed_scores import BorrowedScores
    from pipelines.growing import grown_from
    from pipelines.pack import Pack
    from pipelines.score import Score
    from pipelines.select import Select
    from pipelines.workers import check

    if workers is not None:
        check(workers, beam_options(beam_args), beam_args)
    wanted = config.workers if workers is None else workers
    scores = Score if config.scored is None else BorrowedScores
    kinds: dict[str, Callable[[MillConfig], Stage]] = {
        "score": scores, "augment": Augment, "select": Select, "pack": Pack,
    }  # fmt: skip
    manifests: dict[str, Manifest] = {}

    def begin(name: str, stage: Stage) -> None:
        """A stage is to be made, and so are those after it."""
        if not begun:
            size = getattr(stage, "size_bytes", None)
            made_here = here(name)
            preflight.check(config, stages[stages.index(name) :], here=made_here, source_bytes=size)
            for problem in preflight.ahead(config, STAGES[STAGES.index(stages[-1]) + 1 :]) if made_here else ():
                logger.warning("%s", problem)
        begun.append(name)
        on_stage(name, None, None)

    def here(name: str) -> Sequence[str]:
        """The stages that this machine makes from `name` on."""
        return stages[stages.index(name) :] if works_here(beam_options(beam_args)) else ()

    begun: list[str] = []
    for name in stages:
        if name == "augment":
            _learn_first(config, beam_args, say, replace=replace)
        is_new = not begun and manifest.read(config.output, name, any_format=True) is None
        to_come = stages[stages.index(name) :]
        with preflight.told_together(config, to_come, here=here(name)) if is_new else contextlib.nullcontext():
            stage = kinds[name](config)
        later = {after: partial(kinds[after], config) for after in STAGES[STAGES.index(name) + 1 :]}
        manifests[name], did = stage.run(
            beam_args=beam_args,
            workers=wanted,
            replace=replace,
            force=force,
            in_place_of=None if replace or force else grown_from(stage, later, say),
            on_begin=partial(begin, name, stage),
        )
        on_stage(name, manifests[name], did)
    return manifests


def _learn_first(config: MillConfig, beam_args: Sequence[str], say: Callable[[str], None], *, replace: bool) -> None:
    """The exploring pilot, where the budget is to be spent by one, none was made, and the config says how large."""
    if config.budget.pilot_segments is None:
        return
    from pipelines.plan import make_plan
    from pipelines.plan.learned import find_gain, read_learned

    if find_gain(config) is not None:
        if not replace:
            return  # whether it is of this config is for the stage to say
        with contextlib.suppress(RequestError):
            read_learned(config, manifest.require(config.output, "score"))
            return
    make_plan(config, pilot=config.budget.pilot_segments, explore=True, beam_args=beam_args, say=say)
