"""One training run: one arm, one seed. A plain loop; `curve.json` and a checkpoint are what it leaves.

    rows of the arm ─► steps ─┬─► a point of the curve, every so many tokens
                              └─► checkpoint: what is killed goes on to the same numbers

Which rows a step has follows from its number and the seed alone, and so do the first weights: students of one seed
differ in their arm and in nothing else. Imports torch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipelines.ablation import curves, evaluators
from pipelines.ablation.config import AblationConfig
from pipelines.ablation.curves import Curve, Point
from pipelines.ablation.evaluators import Evaluator, Setting
from pipelines.ablation.optimizers import optimizers, rate_factor, take_step
from pipelines.ablation.student import batch_of, device_of, labelled, new_student, summed_nats
from sharding.errors import MillError
from sharding.models.tokenizer import load_tokenizer
from sharding.shards.dataset import PackedDataset
from sharding.shards.sampler import EpochOrder
from sharding.storage import manifest

CHECKPOINT_S = 120.0
"""A checkpoint is written at every point, and at least this often."""

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training run.

    Attributes:
        arm, seed: which student.
        setting: the arm's output, and what evaluators look at.
        folder: a local folder for its curve and checkpoint.
        identity: see `Curve`.
        config: the `ablation` section.
        number: of the run among all; chooses its GPU.
    """

    arm: str
    seed: int
    setting: Setting
    folder: str
    identity: str
    config: AblationConfig
    number: int = 0


def train(training: Training, on_step: Callable[[int], None] = lambda tokens: None) -> Curve:
    """Train a student, from where an earlier run was ended, and ask it at every point.

    Args:
        training: which one.
        on_step: called with the tokens trained on so far, after every step; once where all were before.

    Returns:
        Its curve, which `curve.json` holds as well.

    Raises:
        RequestError: the config doesn't fit the shards.
        MillError: the shards are unreadable, an evaluator failed, or the loss is no longer a number.
    """
    if (found := finished(training)) is not None:
        on_step(found.tokens)
        return found
    torch.set_num_threads(training.config.threads)
    run = _Run(training)
    run.restore()
    run.ask_if_due()
    saved_at = time.monotonic()
    while run.tokens < run.points[-1]:
        run.step()
        on_step(run.tokens)
        if run.ask_if_due() or time.monotonic() - saved_at > CHECKPOINT_S:
            run.save()
            saved_at = time.monotonic()
    return run.curve()


def finished(training: Training) -> Curve | None:
    """The curve of a student on whom nothing is left to train; None of any other.

    Raises:
        MillError: what is there is of another config or corpus.
    """
    found = curves.read(training.folder)
    if found is None:
        return None
    curves.check(found, training.identity)
    return found if found.done and found.tokens == last_point(training.config, found.sequence_length) else None


class _Run:
    """The state of a training run.

    Attributes:
        tokens: trained on so far.
        points: the tokens of every point of the curve, ascending.
    """

    def __init__(self, training: Training) -> None:
        self.training, config = training, training.config
        packed = manifest.require(training.setting.output, "pack")
        self._tokenizer = load_tokenizer(packed.config["tokenizer"])
        self._rows = PackedDataset(training.setting.output)
        self._epoch, self._order = 0, EpochOrder(self._rows, training.seed, 0)
        if not len(self._rows):
            raise MillError(f"arm {training.arm}: its train split has no sequence")
        self._size = self._rows.sequence_length
        self._rows_per_step, self._micro_rows = config.rows_of_step(self._size)
        self._step_tokens = self._rows_per_step * self._size
        self._num_steps = -(-config.tokens // self._step_tokens)
        self.points = points_of(config, self._step_tokens)
        self._device = device_of(config, training.number)
        vocab_size = max(self._rows.vocab_size, self._tokenizer.vocab_size)
        self._model = new_student(config.model, vocab_size, self._size, training.seed).to(self._device)
        self._model.train()
        self._optimizers = optimizers(self._model, config)
        self._averaged = None
        if config.average_decay is not None:
            self._averaged = AveragedModel(self._model, multi_avg_fn=get_ema_multi_avg_fn(config.average_decay))
        self._evaluators: list[Evaluator] | None = None
        self._step = 0
        self._nats, self._labelled = 0.0, 0
        self._asked: list[Point] = []

    @property
    def tokens(self) -> int:
        return self._step * self._step_tokens

    def step(self) -> None:
        """One step of training."""
        config, first = self.training.config, self._step * self._rows_per_step
        rows = [self._row(first + place) for place in range(self._rows_per_step)]
        batches = [batch_of(rows[start : start + self._micro_rows]) for start in range(0, len(rows), self._micro_rows)]
        tokens, nats = sum(map(labelled, batches)), 0.0
        for batch in batches:
            with torch.autocast(self._model.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                loss = summed_nats(self._model, batch)
            (loss / max(1, tokens)).backward()
            nats += float(loss.detach())
        if not math.isfinite(nats):
            raise MillError(
                f"arm {self.training.arm}, seed {self.training.seed}: the loss is {nats} after {self.tokens:,} tokens; "
                "lower ablation.learning_rate"
            )
        take_step(self._model, self._optimizers, config, rate_factor(config, self._step, self._num_steps))
        if self._averaged is not None:
            self._averaged.update_parameters(self._model)
        self._step += 1
        self._nats, self._labelled = self._nats + nats, self._labelled + tokens

    def _row(self, number: int) -> dict[str, np.ndarray]:
        """The row of that number over all epochs, each in an order of its own."""
        epoch, place = divmod(number, len(self._rows))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, EpochOrder(self._rows, self.training.seed, epoch)
        return self._rows[self._order.row_at(place)]

    def ask_if_due(self) -> bool:
        """Ask the evaluators where a point of the curve is due; whether it was."""
        if self.tokens not in self.points or (self._asked and self._asked[-1].tokens == self.tokens):
            return False
        if self._evaluators is None:
            self._evaluators = [evaluators.make(one, self.training.setting) for one in self.training.config.evaluators]
        asked = self._model if self._averaged is None else self._averaged.module
        asked.eval()
        scores: dict[str, float] = {}
        for config, evaluator in zip(self.training.config.evaluators, self._evaluators, strict=True):
            scores |= evaluators.asked(config, evaluator, asked, self._tokenizer)
        asked.train()
        train_nats = self._nats / self._labelled if self._labelled else None
        self._asked.append(Point(tokens=self.tokens, train_nats=train_nats, scores=scores))
        if self._step % steps_between(self.training.config, self._step_tokens) == 0:
            # Not at an end in between: a run that goes on behind it is to say what one to the later end says.
            self._nats, self._labelled = 0.0, 0
        curves.write(self.training.folder, self.curve())
        return True

    def curve(self) -> Curve:
        """What has been asked so far."""
        asked = [point for point in self._asked if point.tokens in self.points]
        return Curve(
            arm=self.training.arm,
            seed=self.training.seed,
            output=self.training.setting.output,
            identity=self.training.identity,
            rows=self._rows.rows,
            sequence_length=self._size,
            parameters=sum(weights.numel() for weights in self._model.parameters()),
            points=asked,
            done=bool(asked) and asked[-1].tokens == self.points[-1],
        )

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        path = Path(self.training.folder, CHECKPOINT)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(
            {
                "identity": self.training.identity,
                "step": self._step,
                "nats": self._nats,
                "labelled": self._labelled,
                "asked": [msgspec.to_builtins(point) for point in self._asked],
                "model": self._model.state_dict(),
                "averaged": self._averaged and self._averaged.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            },
            path.with_suffix(".tmp"),
        )
        path.with_suffix(".tmp").replace(path)

    def restore(self) -> None:
        """Go to where the checkpoint is, if there is one that doesn't lie behind what is asked for."""
        saved = read_checkpoint(self.training.folder)
        if saved is None or saved["identity"] != self.training.identity or saved["step"] > self._num_steps:
            return
        self._model.load_state_dict(saved["model"])
        if self._averaged is not None:
            self._averaged.load_state_dict(saved["averaged"])
        for optimizer, state in zip(self._optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self._step, self._nats, self._labelled = saved["step"], saved["nats"], saved["labelled"]
        self._asked = [msgspec.convert(point, Point) for point in saved["asked"]]


def points_of(config: AblationConfig, step_tokens: int) -> list[int]:
    """The training tokens at which students are asked: before the first step, every so many tokens, and at the end."""
    last = -(-config.tokens // step_tokens)
    return [step * step_tokens for step in sorted({*range(0, last, steps_between(config, step_tokens)), last})]


def last_point(config: AblationConfig, sequence_length: int) -> int:
    """The training tokens at the end of a curve, by the length of a sequence."""
    return points_of(config, config.batch_tokens // sequence_length * sequence_length)[-1]


def steps_between(config: AblationConfig, step_tokens: int) -> int:
    """Steps from one point of a curve to the next."""
    return max(1, round(config.evaluation_tokens / step_tokens))


def read_checkpoint(folder: str) -> dict[str, Any] | None:
    """The checkpoint of a training run; None where there is none.

    Raises:
        MillError: the file is damaged.
    """
    path = Path(folder, CHECKPOINT)
    if not path.is_file():
        return None
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what the bytes make it stumble over
        raise MillError(f"{path} can't be read ({type(error).__name__}): remove it, and the run begins anew") from error
    return saved
