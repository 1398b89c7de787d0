"""Held-out loss: how likely a student finds text that it was not trained on, plain and as it is packed.

Scores, all mean ln p of a token, in nats:

    source                      raw held-out documents, without thoughts: the same text for every arm
    decile_1 ... decile_10      the same by difficulty for the scorer, from the easiest tenth of the tokens
    packed_source, packed_thought, packed_delimiter
                                the arm's own validation sequences, by token type: not the same text for every arm
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from pipelines.ablation.evaluators import Setting
from pipelines.ablation.heldout_text import held_out, windows
from pipelines.ablation.student import batch_of, logits_of, read_texts
from sharding.models.tokenizer import TextTokenizer
from sharding.records.rows import TokenType
from sharding.shards.dataset import PackedDataset
from sharding.shards.rows import split_of
from sharding.storage import manifest

DECILES = 10
_ROWS = 8


class Heldout:
    """Asks for the loss on held-out text.

    Args:
        setting: where that is.
        path: a scored output whose documents are read instead of the validation split.
        max_tokens: tokens of held-out text, and as many of validation sequences.
    """

    def __init__(self, setting: Setting, path: str | None = None, max_tokens: int = 32_768) -> None:
        packed = manifest.require(setting.output, "pack")
        self._size = int(packed.config["pack"]["sequence_length"])
        self._pieces, nats = windows(held_out(setting.scores, setting.baseline, path, max_tokens), self._size)
        order = np.argsort(nats, kind="stable") if len(np.unique(nats)) > 1 else np.empty(0, np.int64)
        self._deciles = np.array_split(order, DECILES) if len(order) >= DECILES else []
        splits = {split_of(entry) for entry in packed.files.get("shards", [])}
        self._rows: PackedDataset | None = None
        if "validation" in splits:
            self._rows = PackedDataset(setting.output, "validation", loss_mask="all")
        self._num_rows = max(1, max_tokens // self._size)

    def evaluate(self, model: Any, tokenizer: TextTokenizer) -> dict[str, float]:
        nats = np.concatenate([found for found, _ in read_texts(model, self._pieces)]).astype(np.float64)
        scores = {"source": -float(nats.mean())}
        for number, places in enumerate(self._deciles, start=1):
            scores[f"decile_{number}"] = -float(nats[places].mean())
        return scores | self._packed(model)

    @torch.no_grad()
    def _packed(self, model: Any) -> dict[str, float]:
        if self._rows is None or not len(self._rows):
            return {}
        sums, numbers = np.zeros(len(TokenType)), np.zeros(len(TokenType))
        last = min(len(self._rows), self._num_rows)
        for start in range(0, last, _ROWS):
            rows = [self._rows[place] for place in range(start, min(start + _ROWS, last))]
            batch = batch_of(rows)
            logits = logits_of(model, batch["input_ids"], batch["position_ids"], batch["mask"]).float()[:, :-1]
            labels = batch["labels"][:, 1:].to(logits.device)
            nats = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none")
            kinds = np.stack([row["token_type"][1:] for row in rows]).ravel()
            labelled = (labels.flatten() != -100).cpu().numpy()
            sums += np.bincount(kinds[labelled], nats.double().cpu().numpy()[labelled], minlength=len(TokenType))
            numbers += np.bincount(kinds[labelled], minlength=len(TokenType))
        return {
            f"packed_{kind.name.lower()}": -float(sums[kind] / numbers[kind])
            for kind in (TokenType.SOURCE, TokenType.THOUGHT, TokenType.DELIMITER)
            if numbers[kind]
        }
