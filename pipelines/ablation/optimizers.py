"""What moves the weights of a student, and how far. Imports torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from pipelines.ablation.config import AblationConfig
from sharding.errors import RequestError


def take_step(model: Any, moving: Sequence[torch.optim.Optimizer], config: AblationConfig, factor: float) -> None:
    """Move the weights by their gradients, which are gone afterwards.

    Args:
        moving: of `optimizers`.
        factor: share of `ablation.learning_rate`.
    """
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
    for optimizer in moving:
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def rate_factor(config: AblationConfig, step: int, num_steps: int) -> float:
    """The learning rate of a step, from 0, as a share of `ablation.learning_rate`."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    done = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    return (1 + math.cos(math.pi * done)) / 2 if config.schedule == "cosine" else 1 - done


def optimizers(model: Any, config: AblationConfig) -> list[torch.optim.Optimizer]:
    """What moves the weights: AdamW, or Muon (arXiv 2502.16982) for the matrices of the layers and AdamW for the rest.

    Weights decay where they are matrices.
    """
    matrices = [weights for weights in model.parameters() if weights.ndim >= 2]
    others = [weights for weights in model.parameters() if weights.ndim < 2]
    betas = (0.9, 0.95)
    if config.optimizer == "adamw":
        return [_adamw(matrices, others, config.weight_decay, betas)]
    ends = {id(model.get_input_embeddings().weight)}
    if (head := model.get_output_embeddings()) is not None:
        ends.add(id(head.weight))
    hidden = [weights for weights in matrices if id(weights) not in ends and weights.ndim == 2]
    if not hidden:
        raise RequestError("ablation.optimizer: muon needs matrices between the embeddings, and the model has none")
    taken = set(map(id, hidden))
    rest = [weights for weights in matrices if id(weights) not in taken]
    muon = torch.optim.Muon(hidden, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")
    return [muon, _adamw(rest, others, config.weight_decay, betas)]


def _adamw(decaying: Sequence[Any], others: Sequence[Any], decay: float, betas: tuple[float, float]) -> Any:
    groups = [{"params": list(weights), "weight_decay": share} for weights, share in ((decaying, decay), (others, 0.0))]
    return torch.optim.AdamW([group for group in groups if group["params"]], betas=betas)
