"""Evaluators: what a student is asked at every point of its curve. One module each, named in `EVALUATORS`.

An evaluator is a class. It is made once for each student as `Class(setting, **options)` and has

    evaluate      (model, tokenizer) → scores by name; the higher, the better

where `model` is the student, a `transformers` causal language model in eval mode, and `tokenizer` a
`sharding.models.tokenizer.TextTokenizer`. `pipelines.ablation.generation` lets a student write and asks it for the
log-probability of a text. The name of a score goes behind the evaluator's: `heldout.source`.

One of your own is named in the config as "file.py:Class" or "module:Class", and its scores begin with the class's name.
It is made as `Class(**options)` and may have, instead of `evaluate`,

    scores        (generate) → scores by name, one for each item, all higher the better

where `generate` is a `pipelines.ablation.generation.Generate`: prompts → texts. The mean over items goes into the
curve.

The table is in `pipelines.ablation.config`, whose config section checks the names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipelines.ablation.config import EVALUATORS, EvaluatorConfig
from sharding.errors import MillError, RequestError
from sharding.models.tokenizer import TextTokenizer
from sharding.own_code import code_digest, load_named


class Evaluator(Protocol):
    """What a student is asked."""

    def evaluate(self, model: Any, tokenizer: TextTokenizer) -> dict[str, float]:
        """Scores of the model by name; the higher, the better. A name once given is given at every point."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where a built-in evaluator finds what it asks about.

    Attributes:
        scores: output of the run that was scored.
        output: output of the arm that the student is trained on.
        baseline: output of the arm that others are compared with: all students are asked about its held-out text.
        places: output of the arm whose requests say where thoughts stand; None where no arm has any.
    """

    scores: str
    output: str
    baseline: str
    places: str | None = None


def make(config: EvaluatorConfig, setting: Setting) -> Evaluator:
    """The evaluator that a config names, for one student.

    Raises:
        RequestError: there is none, it is not shaped like one, or its options are not its own.
        MillError: what it asks about isn't there.
    """
    found = evaluator_class(config.name)
    try:
        made = found(setting, **config.options) if config.name in EVALUATORS else found(**config.options)
    except TypeError as error:
        raise RequestError(f"ablation.evaluators: {config.name} with options {config.options}: {error}") from error
    return made if hasattr(made, "evaluate") else _OfItems(config.name, made)


class _OfItems:
    """One of a user's own that is given a generate function and returns scores per item."""

    def __init__(self, name: str, own: Any) -> None:
        self._name, self._own = name, own

    def evaluate(self, model: Any, tokenizer: TextTokenizer) -> dict[str, float]:
        from pipelines.ablation.generation import Generate

        found = self._own.scores(Generate(model, tokenizer))
        if not isinstance(found, Mapping) or not found:
            raise MillError(f"evaluator {self._name}: scores gave {type(found).__name__}, not scores by name")
        return {name: self._mean(name, items) for name, items in found.items()}

    def _mean(self, name: str, items: Sequence[float]) -> float:
        if not len(items):
            raise MillError(f"evaluator {self._name}: {name} has no item")
        return math.fsum(map(float, items)) / len(items)


def asked(config: EvaluatorConfig, evaluator: Evaluator, model: Any, tokenizer: TextTokenizer) -> dict[str, float]:
    """The scores under their full names.

    Raises:
        MillError: the evaluator failed, or a score is no finite number.
    """
    try:
        found = evaluator.evaluate(model, tokenizer)
        scores = {f"{prefix_of(config.name)}.{name}": float(score) for name, score in found.items()}
    except (MillError, RequestError):
        raise
    except Exception as error:  # whatever a user's own code raises is to be told with its name
        raise MillError(f"evaluator {config.name}: {type(error).__name__}: {error}") from error
    for name, score in scores.items():
        if not math.isfinite(score):
            raise MillError(f"evaluator {config.name}: {name} is {score}; scores are finite numbers")
    return scores


def prefix_of(name: str) -> str:
    """What the scores of an evaluator begin with."""
    return name.rpartition(":")[2]


def evaluator_class(name: str) -> Any:
    """The class of an evaluator: a built-in one by name, or the user's own.

    Raises:
        RequestError: there is none, or it has neither `evaluate` nor `scores`.
    """
    found = load_named(EVALUATORS.get(name, name), "evaluator", "ablation.evaluators")
    if not hasattr(found, "evaluate") and not hasattr(found, "scores"):
        raise RequestError(
            f"ablation.evaluators: {name!r} has neither 'evaluate' nor 'scores'; see pipelines.ablation.evaluators"
        )
    return found


def check_layout(name: str, layout: str) -> None:
    """Refuse an evaluator that has nothing to ask about in a corpus of this layout.

    Raises:
        RequestError: it has nothing.
    """
    if name == "own_thought" and layout == "after_document":
        raise RequestError(
            "ablation.evaluators: own_thought has nothing to read behind a thought, since layout after_document puts "
            "it behind the text; name another layout or leave the evaluator out"
        )


def evaluator_digest(name: str) -> str:
    """A hash of the code of a user's own evaluator in a file, so that a changed one is asked anew; "" for the others.

    Raises:
        RequestError: the file can't be read.
    """
    try:
        return code_digest(name)
    except OSError as error:
        raise RequestError(f"ablation.evaluators: {name!r} can't be loaded: {error}") from error
