"""Before a plan: what a look at the config and at this machine tells, and whether there can be a pilot at all."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines import preflight
from pipelines.config import MillConfig
from sharding.errors import RequestError
from sharding.storage import manifest


def look_ahead(config: MillConfig, beam_args: Sequence[str], *, is_pilot: bool) -> list[str]:
    """What would keep a run from ending well on this machine, where that is no reason not to plan it.

    Args:
        config: the run.
        beam_args: Beam options of the pilot.
        is_pilot: whether the plan generates.

    Raises:
        RequestError: something would keep it from that wherever it is made, or keeps the pilot from being made, or a
            pilot is asked for before the corpus is scored.
        MillError: a package is absent, or there is no room.
    """
    is_scored = manifest.read(config.scored or config.output, "score") is not None
    if is_pilot:
        if not is_scored:
            raise not_scored()
        from pipelines.beam_options import beam_options, works_here

        # It pays, as a run would: nothing is bought that the stages after it can't use.
        here: Sequence[str] = manifest.STAGES[1:] if works_here(beam_options(beam_args)) else ()
        preflight.check(config, manifest.STAGES, here=here)
        return []
    here = [] if is_scored else ["score"]  # a sample of the source is scored here
    preflight.check(config, manifest.STAGES, here=here)
    to_come = [stage for stage in manifest.STAGES[1:] if manifest.read(config.output, stage) is None]
    return preflight.ahead(config, to_come)


def not_scored() -> RequestError:
    """Why there is no pilot without scores."""
    return RequestError(
        "plan --pilot: the corpus isn't scored yet, so a pilot's tiers would not be those of the run, and what it "
        "buys would be bought twice: run `thoughtmill score` first, or plan without --pilot"
    )
