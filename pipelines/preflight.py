"""Preflight: what would keep later stages from working, told before the first one begins, all at once.

Scoring may take hours; that the generator's package isn't installed, its key isn't set or its server is another one
can be known before. Looks only at what the stages that are to be made need, for where they are made on this machine:
what the workers of a cluster have can't be told from here. Imports no Beam, so that a plan is there at once.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress

from augment.engines import create_engine
from augment.engines.config import PACKAGES, ModelConfig
from augment.requests.dialects import load_dialect
from difficulty.config import SCORERS, DifficultyConfig
from pipelines.config import MillConfig
from pipelines.joints import asks_scorer
from pipelines.rounds import check_round
from sharding.errors import MillError, restated
from sharding.models.tokenizer import load_tokenizer
from sharding.packing.laying_out import delimiter_warnings

logger = logging.getLogger(__name__)


def check(config: MillConfig, stages: Sequence[str]) -> None:
    """Refuse to begin what can't end well.

    Args:
        stages: those that are to be made, here.

    Raises:
        RequestError: the config or the environment is wrong; names every key.
        MillError: a package is absent.
    """
    problems: list[MillError] = []
    try:
        check_round(config)
    except MillError as error:
        problems.append(error)
    scorers = {"difficulty": config.difficulty} if "score" in stages and config.scored is None else {}
    if "select" in stages and asks_scorer(config):
        key = "difficulty" if config.select.gain.scorer is None else "select.gain.scorer"
        scorers[key] = config.gain_difficulty
    for key, difficulty in scorers.items():
        problems += _problems_of_scorer(key, difficulty)
    used = {name for tier in config.budget.tiers for name in tier.models} if "augment" in stages else set()
    if "select" in stages and config.select.judge is not None:
        used.add(config.select.judge.model)
    if used:
        for name, model in sorted(config.models.items()):
            if name in used:
                found = _problems_of_model(name, model, config.tokenizer)
                problems += (restated(problem, f"models.{name}: {problem}") for problem in found)
    if "pack" in stages:
        problems += _problems_of_packing(config)
    if not problems:
        return
    worst = max(problems, key=lambda problem: problem.exit_code)
    told = [str(problem) for problem in problems]
    many = f"{len(told)} things would keep the run from ending well:\n  " if len(told) > 1 else ""
    raise restated(worst, many + "\n  ".join(told))


def _problems_of_scorer(key: str, difficulty: DifficultyConfig) -> Iterator[MillError]:
    kind = SCORERS[difficulty.scorer]
    if absent := [package for package in kind.packages if not _is_installed(package)]:
        yield _absent(f"{key}: scorer {difficulty.scorer}", absent, kind.extra, "another machine for this stage")
    elif kind.asks_servers:
        from difficulty.scorers.endpoint import look

        yield from (restated(problem, f"{key}: {problem}") for problem in look(difficulty))


def _problems_of_model(name: str, model: ModelConfig, training_tokenizer: str) -> Iterator[MillError]:
    packages, extra = PACKAGES.get(model.engine, ((), ""))
    if absent := [package for package in packages if not _is_installed(package)]:
        yield _absent(f"engine {model.engine}", absent, extra, "engine: rehearsal")
        return
    try:
        engine = create_engine(model)
        load_dialect(model, load_tokenizer(training_tokenizer))
    except MillError as error:
        yield error
        return
    if model.engine == "endpoint":
        from augment.engines.endpoint import EndpointEngine

        assert isinstance(engine, EndpointEngine)
        yield from engine.look()


def _problems_of_packing(config: MillConfig) -> Iterator[MillError]:
    try:
        for warning in delimiter_warnings(config.pack, load_tokenizer(config.tokenizer)):
            logger.warning("%s", warning)
    except MillError as error:
        yield error


def _absent(who: str, packages: Sequence[str], extra: str, instead: str) -> MillError:
    names = " and ".join("vLLM" if package == "vllm" else package for package in packages)
    return MillError(f"{who} needs {names}, not installed here: pip install 'thoughtmill[{extra}]', or name {instead}")


def _is_installed(package: str) -> bool:
    with suppress(ValueError):  # a module that stands in for it
        found = importlib.util.find_spec(package)
        return found is not None and found.origin is not None  # a folder that happens to have the name has none
    return True
