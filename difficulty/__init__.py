"""Difficulty: how hard each token is, and what each segment gets for it.

The score stage in five lines, on a list of strings:

    from difficulty import DifficultyConfig, score_texts

    config = DifficultyConfig(model="smollm2-135m-instruct")
    for segment in score_texts(["Some text.", "Some more."], config):
        print(segment.segment_id, segment.difficulty_nats, segment.surprisal_nats)
"""

from difficulty.budget.allocate import allocate
from difficulty.budget.histogram import DifficultyHistogram
from difficulty.budget.tiers import BudgetConfig, ModelPrice, TierConfig
from difficulty.config import DifficultyConfig
from difficulty.scoring import score_texts
from difficulty.surprisal import align_nats, hard_spans

__all__ = [
    "BudgetConfig",
    "DifficultyConfig",
    "DifficultyHistogram",
    "ModelPrice",
    "TierConfig",
    "align_nats",
    "allocate",
    "hard_spans",
    "score_texts",
]
