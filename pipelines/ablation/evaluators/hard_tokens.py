"""Hard tokens: how often the most likely next token of a student is right, where the scorer was surprised.

Scores, shares of raw held-out tokens: `accuracy` of those above `difficulty.threshold_nats`, `easy_accuracy` of the
others.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines.ablation.evaluators import Setting
from pipelines.ablation.heldout_text import held_out, threshold_of, windows
from pipelines.ablation.student import read_texts
from sharding.errors import RequestError
from sharding.models.tokenizer import TextTokenizer
from sharding.storage import manifest


class HardTokens:
    """Asks for the next token.

    Args:
        setting: where the held-out text is.
        path: a scored output whose documents are read instead of the validation split.
        max_tokens: tokens of held-out text.

    Raises:
        RequestError: none of them is hard.
    """

    def __init__(self, setting: Setting, path: str | None = None, max_tokens: int = 32_768) -> None:
        size = int(manifest.require(setting.output, "pack").config["pack"]["sequence_length"])
        self._pieces, nats = windows(held_out(setting.scores, setting.baseline, path, max_tokens), size)
        threshold_nats = threshold_of(path or setting.scores)
        self._hard = nats > threshold_nats
        if not self._hard.any():
            raise RequestError(
                f"ablation.evaluators: hard_tokens has none: no token of the held-out text has more than "
                f"{threshold_nats:g} nats; lower difficulty.threshold_nats or leave the evaluator out"
            )

    def evaluate(self, model: Any, tokenizer: TextTokenizer) -> dict[str, float]:
        right = np.concatenate([found for _, found in read_texts(model, self._pieces)])
        scores = {"accuracy": float(right[self._hard].mean())}
        if not self._hard.all():
            scores["easy_accuracy"] = float(right[~self._hard].mean())
        return scores
