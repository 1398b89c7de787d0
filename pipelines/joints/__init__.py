"""Joints: what joins packages that don't know each other, for the stages and the plan alike.

The budget of `difficulty` meets the models of `augment`; the hard spans of a segment become what a prompt names; layout
and value say what a generator is shown; and a value asks the scorer of the first stage. Imports no Beam, so that a plan
is there at once.
"""

from __future__ import annotations

from pipelines.joints.asking import Choices, hardest_spans, recipe_inputs, trace_planner, work_order
from pipelines.joints.budget import (
    CONTRACTION_KEYS,
    TierGains,
    allocation_of,
    goes_by_gain,
    plain_contraction,
    plain_tiers,
    plan_budget,
    prices,
)
from pipelines.joints.contracting import contexts_here
from pipelines.joints.grading import graded_here, grading_of, judge_inputs
from pipelines.joints.retrieving import index_inputs, index_request, searched_output, with_index
from pipelines.joints.selecting import ScorerNats, asks_scorer, contaminated_urls, select_section
from pipelines.joints.shown import MIN_HELD_BACK_TOKENS, MIN_SHOWN_TOKENS, Holdback, holdback_of

__all__ = [
    "CONTRACTION_KEYS",
    "MIN_HELD_BACK_TOKENS",
    "MIN_SHOWN_TOKENS",
    "Choices",
    "Holdback",
    "ScorerNats",
    "TierGains",
    "allocation_of",
    "asks_scorer",
    "contaminated_urls",
    "contexts_here",
    "goes_by_gain",
    "graded_here",
    "grading_of",
    "hardest_spans",
    "holdback_of",
    "index_inputs",
    "index_request",
    "judge_inputs",
    "plain_contraction",
    "plain_tiers",
    "plan_budget",
    "prices",
    "recipe_inputs",
    "searched_output",
    "select_section",
    "trace_planner",
    "with_index",
    "work_order",
]
