"""The scorer of the miniature: a small model trained for a minute on raw text of its world, saved as any other is.

It knows the plain facts more or less, what follows from them hardly, and numbers not at all: as a real scorer does.
Imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from pipelines.ablation.config import AblationConfig, StudentConfig
from pipelines.ablation.optimizers import optimizers, rate_factor, take_step
from pipelines.ablation.student import labelled, new_student, summed_nats, within_documents
from pipelines.miniature.tokens import END_OF_TEXT
from sharding.models.tokenizer import TextTokenizer, load_tokenizer

SIZE = StudentConfig(layers=3, width=96, heads=4)
CONTEXT_TOKENS = 256
STEP_ROWS = 4
TRAINING = AblationConfig(optimizer="muon", learning_rate=3e-3, weight_decay=0.01, warmup_steps=100)
"""As the students are trained."""


def train_scorer(texts: Iterable[str], tokenizer: str, folder: Path, *, tokens: int, seed: int) -> None:
    """Train a scorer and save it, its tokenizer beside it.

    Args:
        texts: raw documents, at least as many as the tokens take.
        tokenizer: folder of the tokenizer.
        folder: where the scorer goes.
        tokens: to train on.
        seed: of the first weights.
    """
    from transformers import AutoTokenizer

    torch.set_num_threads(1)  # the same sums, whatever the machine
    known = load_tokenizer(tokenizer)
    model = new_student(SIZE, known.vocab_size, CONTEXT_TOKENS, seed).train()
    moving = optimizers(model, TRAINING)
    rows = _rows(texts, known)
    steps = max(1, tokens // (STEP_ROWS * CONTEXT_TOKENS))
    for step in range(steps):
        batch = _batch([row for row, _ in zip(rows, range(STEP_ROWS), strict=False)])
        (summed_nats(model, batch) / labelled(batch)).backward()
        take_step(model, moving, TRAINING, rate_factor(TRAINING, step, steps))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)


def _rows(texts: Iterable[str], tokenizer: TextTokenizer) -> Iterator[list[np.ndarray]]:
    """Documents, each with its end, cut into rows of `CONTEXT_TOKENS` tokens."""
    end = tokenizer.encode_trusted(END_OF_TEXT).astype(np.int64)
    row: list[np.ndarray] = []
    room = CONTEXT_TOKENS
    for text in texts:
        left = np.concatenate([tokenizer.encode(text).astype(np.int64), end])
        while len(left):
            row.append(left[:room])
            room, left = room - len(row[-1]), left[room:]
            if not room:
                yield row
                row, room = [], CONTEXT_TOKENS


def _batch(rows: list[list[np.ndarray]]) -> dict[str, torch.Tensor]:
    """As `pipelines.ablation.student.summed_nats` takes it; no label where a piece of a document begins."""
    lengths = [list(map(len, row)) for row in rows]
    input_ids = torch.from_numpy(np.stack([np.concatenate(row) for row in rows]))
    positions = torch.from_numpy(np.stack([np.concatenate(list(map(np.arange, row))) for row in lengths]))
    return {
        "input_ids": input_ids,
        "position_ids": positions,
        "labels": input_ids.masked_fill(positions == 0, -100),
        "mask": within_documents(lengths, CONTEXT_TOKENS),
    }
