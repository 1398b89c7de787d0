"""What decides a curve: a student whose curve has another identity is trained anew, or refused.

A name stays while what is behind it changes, so content stands for models, for a user's own evaluators, and for other
scored outputs that evaluators read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.ablation.config import EVALUATORS, AblationConfig
from pipelines.ablation.evaluators import evaluator_digest
from pipelines.ablation.named_models import content_of
from sharding.hashing import fingerprint
from sharding.storage import manifest

FORMAT = 1
"""Of curves: a change of what training does makes it another number."""

_WITHOUT_EFFECT = (
    "arms", "outputs", "baseline", "whole_arms", "tokens", "seeds", "target", "device", "threads", "parallel",
    "micro_batch_tokens", "influence", "eval_every",
)  # fmt: skip
"""Keys of the section that don't decide what a student of an arm learns, or that its identity has in another form."""


def identity_of(section: AblationConfig, plain: Mapping[str, Any], digests: Sequence[str]) -> str:
    """A hash of all that decides a curve but its seed and, where the learning rate is constant, its length.

    Args:
        section: the `ablation` section.
        plain: the same as plain JSON values.
        digests: of the manifests of what is trained on and asked about.

    Raises:
        RequestError: a model or an evaluator that is named can't be loaded.
        MillError: another output that an evaluator reads isn't scored.
    """
    told = {key: value for key, value in plain.items() if key not in _WITHOUT_EFFECT}
    told["eval_every"] = section.evaluation_tokens
    if section.schedule != "constant":
        told["tokens"] = section.tokens
    told["content"] = content_of(section.model)
    told["code"] = {one.name: evaluator_digest(one.name) for one in section.evaluators}
    if texts := other_texts(section):
        told["texts"] = texts
    return fingerprint([json.dumps([FORMAT, told, list(digests)], sort_keys=True)])


def other_texts(section: AblationConfig) -> dict[str, str]:
    """Of the evaluators that read another scored output than their arm's: name → digest of its scores.

    Raises:
        MillError: it isn't scored.
    """
    named = {one.name: one.options.get("path") for one in section.evaluators if one.name in EVALUATORS}
    return {name: manifest.digest(manifest.require(path, "score")) for name, path in named.items() if path}
