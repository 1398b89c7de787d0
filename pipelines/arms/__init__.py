"""Control arms: corpora for an ablation, of one source, one budget and one ledger, with equal training tokens.

    score, once ─► raw: packed without thoughts ─► its number of sequences
                   every other arm: augment, select, pack, cut to that number ─► arms.json

Every arm is an output of its own under OUTPUT/arms, made by the four stages as any other run: `verify`, `status`, the
card and the exports work on it. What differs between two arms is what `ARMS` says and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from pipelines.arms.kinds import ARMS, DEFAULT_ARMS, LEARNED, RAW, arm_config
from pipelines.arms.matching import matched
from pipelines.arms.result import ArmResult, result_of
from pipelines.config import MillConfig
from pipelines.delivered import deliveries_of
from pipelines.plan.learned import find_gain
from pipelines.run import mill
from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.storage import manifest
from sharding.storage.manifest import Manifest
from sharding.storage.output import Output

if TYPE_CHECKING:
    from pipelines.stage import Did


def mill_arms(
    config: MillConfig,
    arms: Sequence[str] | None = None,
    *,
    beam_args: Sequence[str] = (),
    replace: bool = False,
    whole: bool = False,
    on_stage: Callable[[str, str, Manifest | None, Did | None], None] = lambda arm, stage, manifest, did: None,
) -> dict[str, ArmResult]:
    """Make the arms that aren't done, and write OUTPUT/arms/arms.json.

    Args:
        config: the run whose arms these are; its output is scored, and not packed.
        arms: names of `ARMS`; raw is always made, since it says how long the others are. None: `DEFAULT_ARMS`, and
            learned where a pilot has explored.
        beam_args: Beam options.
        replace: make stages again that another config has made.
        whole: leave every arm as long as it comes; by default all are cut to the sequences of raw.
        on_stage: as `mill`'s, with the name of the arm before ("" for the scores that all share).

    Returns:
        Name of each arm → what it came to.

    Raises:
        RequestError: an arm is not known, or the request was wrong otherwise.
        MillError: a stage failed, or an arm is shorter than the raw one.
    """
    for name in arms or ():
        if name not in ARMS:
            raise RequestError(f"arms: {name!r} is not one of {', '.join(ARMS)}")
    if deliveries_of(manifest.read(config.output, "pack")):
        raise RequestError(
            f"output: later deliveries have joined {config.output}, and arms of its first documents would lack them: "
            "mill all documents into one output, and make the arms there"
        )
    if config.pack.trace_per_epoch > 1:
        raise RequestError(
            f"pack.trace_per_epoch: {config.pack.trace_per_epoch}, and arms are cut to one number of sequences, which "
            "would leave out other documents in each epoch: add --set pack.trace_per_epoch=1"
        )
    if arms is None:
        explored = find_gain(arm_config(config, LEARNED)) is not None
        arms = (*DEFAULT_ARMS, LEARNED) if explored else DEFAULT_ARMS

    def make(name: str, arm: MillConfig, **stages: Any) -> dict[str, Manifest]:
        return mill(arm, beam_args=beam_args, replace=replace, on_stage=partial(on_stage, name), **stages)

    needed = {RAW, *arms, *(other for name in arms for other in ARMS[name].needs)}
    wanted = [name for name in ARMS if name in needed]
    arm_config(config, wanted[-1])  # a mistake shows before the first arm is made
    if config.scored is None:
        make("", config, stages=("score",))
    results: dict[str, ArmResult] = {}
    for name in wanted:
        arm = arm_config(config, name, results[RAW].sequences if name != RAW and not whole else None)
        if name == "uniform_matched":
            arm = matched(arm, results["uniform"], results["adaptive"])
        results[name] = result_of(arm, make(name, arm))
        if not whole and results[name].sequences != results[RAW].sequences:
            raise MillError(
                f"arm {name}: {results[name].sequences} sequences, fewer than the {results[RAW].sequences} of the arm "
                f"{RAW}: too little thinking to compare; raise {config.budget.key}"
            )
    storage.write_json(
        Output(config.output).arms,
        {name: msgspec.to_builtins(result) for name, result in results.items()},
    )
    return results
