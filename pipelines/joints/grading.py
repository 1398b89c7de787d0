"""The judge of selection meets the models of the config, and asks them as the augment stage does."""

from __future__ import annotations

import json
from collections.abc import Sequence

from augment.feeding import worker
from augment.requests.planner import TracePlanner
from augment.requests.tiers import TierRequest
from augment.selection.candidates import JudgedSegment
from augment.selection.grading import Grader, Grading
from pipelines.config import MillConfig
from pipelines.joints.asking import work_order
from pipelines.joints.shown import holdback_of
from sharding.hashing import fingerprint
from sharding.storage import clock


def grading_of(config: MillConfig, began_at: float) -> Grading | None:
    """What grading needs to know of a run that began at a Unix time, as `work_order` takes it; None: nobody judges."""
    judge = config.select.judge
    if judge is None or not holdback_of(config).valued_tiers:
        return None
    tiers = tuple(
        TierRequest(
            tier=tier.name,
            model=judge.model,
            prompt=judge.prompt_name,
            samples=1,
            max_tokens=judge.max_tokens,
            min_tokens=0,
            expected_tokens=float(judge.max_tokens),
        )
        for tier in config.budget.tiers
        if not tier.skips
    )
    planner = TracePlanner(
        tiers=tiers,
        models={judge.model: config.models[judge.model]},
        sampling=config.sampling,
        closing=config.closing,
        tokenizer=config.tokenizer,
    )
    return Grading(
        judge=judge,
        gate=config.select.value == "gain_and_judge",
        planner=planner,
        feeding=config.feeding,
        order=work_order(config, began_at, failing_is_counted=True),
    )


def judge_inputs(grading: Grading | None) -> dict[str, str]:
    """What of a judge decides its verdicts beside the config, as name → digest."""
    if grading is None:
        return {}
    decides = grading.planner.decides(grading.judge.model)
    told = json.dumps([decides, grading.planner.prompt_versions()], sort_keys=True, default=str)
    return {"judge": fingerprint([told], 8)}


def graded_here(config: MillConfig, segments: Sequence[JudgedSegment]) -> list[JudgedSegment]:
    """Segments with a judge's grades, asked for by this process; as they are where nobody judges.

    Raises:
        MillError: the judge's engine can't be had here, or failed for good.
    """
    if (grading := grading_of(config, clock.now_s(config.ledger_url))) is None:
        return list(segments)
    grader = Grader(grading)
    grader.begin()
    try:
        outcomes = [outcome for segment in segments for outcome in grader.take(segment)]
        outcomes += grader.finish()
    finally:
        grader.leave()
        worker.close_all()
    found = {outcome.segment_id: outcome for outcome in outcomes if isinstance(outcome, JudgedSegment)}
    return [found[segment.segment_id] for segment in segments]
