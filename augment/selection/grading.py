"""Grading: a judge's verdicts on the candidates of segments, found in the ledger or asked for. Without Beam.

A verdict is a call of a recipe like any other: fed to the judge's engine as the augment stage feeds its generators, and
a row of the ledger beside those of the trace it is about, so none is bought twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from augment.feeding.config import FeedingConfig
from augment.feeding.recipe_bundle import RecipeBundle
from augment.feeding.recipe_runs import Counted, Ended
from augment.feeding.worker import WorkOrder
from augment.recipes.judging import grading, knock_out
from augment.recipes.protocol import Made, Recipe, RecipeRequest
from augment.requests.planner import TracePlanner
from augment.selection.account_parts import order_counts
from augment.selection.candidates import JudgedSegment
from augment.selection.values.judge import JudgeConfig
from sharding.records.types import Candidate, Request

GATE = "judge"
"""The reason of a candidate whose grade is too low, where the judge is a gate."""


@dataclass(frozen=True, kw_only=True)
class Grading:
    """What grading needs to know of a run; travels to every worker.

    Attributes:
        judge: the section of the config.
        gate: whether a low grade is a reason against a trace.
        planner: of the judge's model; its tiers have the names of those that think.
    """

    judge: JudgeConfig
    gate: bool
    planner: TracePlanner
    feeding: FeedingConfig
    order: WorkOrder


class _Waiting:
    """A segment with the grades that have come."""

    def __init__(self, segment: JudgedSegment, runs: int) -> None:
        self.segment, self.runs = segment, runs
        self.grades: dict[str, float | None] = {}


class Grader:
    """Grades the segments of one bundle. `begin`, `take` each segment, then `finish`; always `leave`."""

    def __init__(self, grading: Grading) -> None:
        self._grading = grading
        self._bundle = RecipeBundle(grading.planner, grading.judge.model, grading.feeding, grading.order)
        self._waiting: dict[tuple[str, str], tuple[_Waiting, list[Candidate]]] = {}  # by segment and run

    def begin(self) -> None:
        """Begin a bundle.

        Raises:
            MillError: the run was stopped.
        """
        self._bundle.begin()

    def take(self, segment: JudgedSegment) -> Iterator[JudgedSegment | dict[str, int]]:
        """Ask for the verdicts on a segment; the segments that are graded by now, and counts."""
        passed = [candidate for candidate in segment.candidates if not candidate.reasons]
        if not segment.valued or not passed:
            yield segment
            return
        pairwise = self._grading.judge.pairwise
        groups = [passed] if pairwise else [[candidate] for candidate in passed]
        waiting = _Waiting(segment, len(groups))
        for group in groups:
            request = self._request(segment, group)
            self._waiting[request.segment_id, group[0].key] = (waiting, group)
            asked, recipe = self._asked(len(group)), self._recipe(group)
            yield from self._outcomes(self._bundle.start(request, group[0].sample, asked, recipe, segment.known))

    def finish(self) -> Iterator[JudgedSegment | dict[str, int]]:
        """The rest, as their verdicts come; all of them are durable then.

        Raises:
            MillError: the engine failed for good, or the store refused.
        """
        yield from self._outcomes(self._bundle.finish())

    def leave(self) -> None:
        """End the bundle, well or not. Safe to call twice."""
        self._bundle.leave()

    def _asked(self, number: int) -> RecipeRequest:
        """A cap that all verdicts on so many candidates stay below."""
        judge = self._grading.judge
        calls = 4 * (number - 1) if judge.pairwise else 2
        return RecipeRequest(
            name=GATE, prompt=judge.prompt_name, model=judge.model, max_tokens=max(1, calls) * judge.max_tokens
        )

    def _recipe(self, group: list[Candidate]) -> Recipe:
        judge = self._grading.judge
        thoughts = [_made(candidate) for candidate in group]
        if judge.pairwise:
            return knock_out(thoughts, judge.prompt_name, judge.max_tokens, judge.temperature)
        return grading(thoughts[0], judge.prompt_name, judge.max_tokens, judge.temperature)

    def _request(self, segment: JudgedSegment, group: list[Candidate]) -> Request:
        return Request(
            doc_id=segment.doc_id,
            segment_index=segment.segment_index,
            tier=segment.tier,
            model=self._grading.judge.model,
            prompt=self._grading.judge.prompt_name,
            request_key=group[0].key.rpartition("-")[0],
            samples=1,
            max_tokens=self._grading.judge.max_tokens,
            expected_tokens=float(self._grading.judge.max_tokens),
            prompt_tokens=0,
            prompt_token_ids=np.empty(0, np.uint32),
            shown_tokens=0,
            text=segment.source_text,
        )

    def _outcomes(self, outcomes: Iterator[Counted | Ended]) -> Iterator[JudgedSegment | dict[str, int]]:
        for outcome in outcomes:
            if isinstance(outcome, Counted):
                when, other = ("found", "now") if outcome.found else ("now", "found")
                told = {"tokens": outcome.tokens, "prompt_tokens": outcome.prompt_tokens}
                yield {
                    "judge_calls": 1,
                    **{f"judge_{what}_{when}": number for what, number in told.items()},
                    **{f"judge_{what}_{other}": 0 for what in told},
                }
                continue
            waiting, group = self._waiting.pop((outcome.request.segment_id, outcome.key))
            said: dict[str, Any] = {"grades": [None] * len(group)} if outcome.error else json.loads(outcome.text)
            waiting.grades |= {one.key: grade for one, grade in zip(group, said["grades"], strict=True)}
            yield {
                "judged": len(group),
                "judge_none": sum(grade is None for grade in said["grades"]),
                "judge_failed": int(bool(outcome.error)),
                **{f"judge_{name}": said.get(name, 0) for name in ("unreadable", "compared", "agreed")},
                **order_counts(group[0], said.get("compared", 0), said.get("agreed", 0)),
            }
            waiting.runs -= 1
            if not waiting.runs:
                yield self._graded(waiting)

    def _graded(self, waiting: _Waiting) -> JudgedSegment:
        segment, least = waiting.segment, self._grading.judge.min_grade
        grades = [waiting.grades.get(candidate.key) for candidate in segment.candidates]
        candidates = [
            msgspec.structs.replace(candidate, reasons=[GATE])
            if self._grading.gate and grade is not None and grade < least
            else candidate
            for candidate, grade in zip(segment.candidates, grades, strict=True)
        ]
        return msgspec.structs.replace(segment, candidates=candidates, grades=grades, known=[])


def _made(candidate: Candidate) -> Made:
    return Made(
        key=candidate.key,
        step="",
        text=candidate.text,
        tokens=candidate.thought_tokens,
        closed=candidate.closed,
    )
