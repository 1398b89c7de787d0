"""Checks of what a config names: prompts, prices, own code, benchmarks, scores and memories of other runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from augment.requests.prompts import load_template, template_names
from augment.selection.benchmarks.files import check_paths
from difficulty.memory.table import describe_memory
from pipelines.joints import prices as prices_of
from pipelines.preflight.subject import Subject
from pipelines.rounds import check_round
from sharding.errors import MillError, RequestError, restated, similar
from sharding.storage import manifest


def prompts(subject: Subject) -> Iterator[MillError]:
    """Templates that are none, or have no place for the text."""
    named = {}
    for number, tier in enumerate(subject.config.budget.tiers):
        named[f"budget.tiers.{number}.prompt"] = tier.prompt
        named |= {f"budget.tiers.{number}.steps.{name}.prompt": step.prompt for name, step in tier.steps.items()}
    if subject.config.budget.contraction_model is not None:
        named["budget.contraction_prompt"] = subject.config.budget.contraction_prompt
    for key, prompt in named.items():
        if prompt is None:
            continue
        try:
            load_template(prompt)
        except MillError as error:
            near = "" if Path(prompt).exists() else similar(prompt, template_names())
            yield restated(error, f"{key}: {error}{near}")


def prices(subject: Subject) -> Iterator[MillError]:
    """Tiers whose cost in the budget's unit isn't known."""
    budget = subject.config.budget
    known = prices_of(subject.config)
    try:
        budget.contraction_spend(2, 1, known)
    except MillError as error:
        yield error
    told: set[tuple[str, ...]] = set()  # a price that is missing is so for every tier of its models
    for tier in budget.tiers:
        try:
            tier.cost(budget.unit, known)
        except MillError as error:
            if tier.models not in told:
                yield error
            told.add(tier.models)


def own_code(subject: Subject) -> Iterator[MillError]:
    """Files of one's own code that aren't there: of a value, of recipes, of evaluators."""
    config = subject.config
    named = {"select.value": config.select.value or ""}
    named |= {f"budget.tiers.{i}.recipe": tier.recipe for i, tier in enumerate(config.budget.tiers)}
    named |= {f"ablation.evaluators.{i}.name": one.name for i, one in enumerate(config.ablation.evaluators)}
    for key, name in named.items():
        path = Path(name.rpartition(":")[0])
        if path.suffix == ".py" and not path.is_file():
            there = [str(file) for file in path.parent.glob("*.py")] if path.parent.is_dir() else []
            yield RequestError(f"{key}: {name!r}: there is no file {path}{similar(str(path), there)}")


def benchmarks(subject: Subject) -> Iterator[MillError]:
    """Paths of benchmarks that match no file."""
    if subject.config.select.decontaminate is not None:
        yield from check_paths(subject.config.select.decontaminate.paths)


def further_round(subject: Subject) -> Iterator[MillError]:
    """A further round that would be none."""
    try:
        check_round(subject.config)
    except MillError as error:
        yield error


def lent_scores(subject: Subject) -> Iterator[MillError]:
    """Scores of another run that aren't there."""
    if (lender := subject.config.scored) is not None:
        try:
            manifest.require(lender, "score")
        except MillError as error:
            yield restated(error, f"scored: {error}")


def searched_corpus(subject: Subject) -> Iterator[MillError]:
    """Another corpus to find passages in that isn't scored."""
    if (corpus := subject.config.retrieval.corpus) is not None:
        try:
            manifest.require(corpus, "score")
        except MillError as error:
            yield restated(error, f"retrieval.corpus: {error}")


def stored_memory(subject: Subject) -> Iterator[MillError]:
    """A memory of an earlier run that isn't there."""
    if (url := subject.config.difficulty.memory_path) is not None:
        try:
            describe_memory(url)
        except MillError as error:
            yield restated(error, f"difficulty.memory_path: {error}")
