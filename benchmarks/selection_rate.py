"""How fast values are computed: the rows that the scorer reads against bare forward passes over the same rows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console

from benchmarks.selection_text import documents
from difficulty.scorers.causal_lm import CausalLMScorer
from difficulty.scorers.reading import rows_after
from difficulty.transforms import shared_scorer
from pipelines.config import MillConfig

SEGMENTS = 3


def ratio_to_bare_forward(console: Console, config: MillConfig, repeats: int) -> float:
    """Rate of valuing over that of bare forward passes on the same rows, the median of turns."""
    scorer = shared_scorer(config.difficulty)
    assert isinstance(scorer, CausalLMScorer)
    texts = [text for _, text in sorted(documents(2_000))]
    cases = [(text[:900], text[900:1400], [other[1400:1800] for other in texts[:12]]) for text in texts[-SEGMENTS:]]
    rows = [
        rows_after(scorer.tokenizer, ["", *traces], source + after, len(source), prefix_tokens=256, context_tokens=None)
        for source, after, traces in cases
    ]

    def ours() -> None:
        for source, after, traces in cases:
            scorer.nats_after(["", *traces], source + after, len(source), prefix_tokens=256)

    def bare() -> None:
        for of_case in rows:
            ids = [row for row in of_case.ids if row is not None]
            with torch.inference_mode():
                for batch in scorer.batches(ids):
                    input_ids, mask = scorer.model.tensors(*scorer.inputs(ids, batch))
                    scorer.model.model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits  # noqa: B018

    bare()  # warms up
    ours()
    turns = [(seconds(ours), seconds(bare)) for _ in range(repeats)]
    ratio = statistics.median(bare_s / ours_s for ours_s, bare_s in turns)
    tokens = int(np.sum([len(ids) for of_case in rows for ids in of_case.ids if ids is not None]))
    rate = tokens / min(ours_s for ours_s, _ in turns)
    console.print(f"Valuing reads {rate:,.0f} tokens/s, {ratio:.2f} of bare forward passes")
    return ratio


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
