"""Checks of what this machine has: packages, models that load and fit, servers that serve what is asked for."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from augment.engines import create_engine
from augment.engines.config import PACKAGES, ModelConfig
from augment.requests.dialects import load_dialect
from augment.selection.values import value_class
from difficulty.config import SCORERS, DifficultyConfig
from pipelines.joints import asks_scorer
from pipelines.preflight.subject import Subject
from sharding.errors import MillError, RequestError, restated
from sharding.models.store import resolve_model
from sharding.models.tokenizer import TextTokenizer
from sharding.packing.as_trainer import check_tokenize
from sharding.packing.laying_out import delimiter_warnings
from sharding.packing.surprisal import check_surprisal
from sharding.search.client import look

logger = logging.getLogger(__name__)

_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth")


def training_tokenizer(subject: Subject) -> Iterator[MillError]:
    """A training tokenizer that isn't there or can't be loaded."""
    if isinstance(subject.tokenizer, MillError):
        yield restated(subject.tokenizer, f"tokenizer: {subject.tokenizer}")


def scorer(subject: Subject) -> Iterator[MillError]:
    """A scorer that can't score: of the score stage."""
    if subject.config.scored is None:
        yield from _of_scorer("difficulty", subject.config.difficulty)


def gain_scorer(subject: Subject) -> Iterator[MillError]:
    """The same of the one that selection asks, where that is another or the score stage is done."""
    config = subject.config
    try:
        asks = asks_scorer(config)
    except MillError:
        return  # its value can't be loaded, which a check of its own tells
    own = config.select.gain.scorer is not None
    if asks and (own or "score" not in subject.here or config.scored is not None):
        yield from _of_scorer("select.gain.scorer" if own else "difficulty", config.gain_difficulty)


def generators(subject: Subject) -> Iterator[MillError]:
    """Generators that can't generate; those that neither a tier nor the judge uses are nobody's business."""
    config = subject.config
    used = set(config.budget.models) if "augment" in subject.here else set()
    if "select" in subject.here and config.select.judge is not None:
        used.add(config.select.judge.model)
    for name, model in sorted(config.models.items()):
        if name in used:
            for problem in _of_model(model, subject.tokenizer):
                yield restated(problem, f"models.{name}: {problem}")


def passages(subject: Subject) -> Iterator[MillError]:
    """The library that finds passages, or the server that does, where a tier shows them."""
    server = subject.config.retrieval.server
    if not subject.config.budget.retrieves:
        return
    if server is None:
        if not _is_installed("tantivy"):
            yield _absent("context: retrieved", ["tantivy"], "retrieval", "another context")
    elif not _is_installed("httpx"):
        yield _absent("retrieval.server", ["httpx"], "search", "another context")
    else:
        yield from (restated(problem, f"retrieval.server: {problem}") for problem in look(server))


def value(subject: Subject) -> Iterator[MillError]:
    """A value of one's own that can't be loaded."""
    select = subject.config.select
    where = Path(select.value_name.rpartition(":")[0])
    if select.value_name == "none" or (where.suffix == ".py" and not where.is_file()):
        return  # that it isn't there is told by `names.own_code`
    try:
        value_class(select.value_name)
    except MillError as error:
        yield error


def delimiters(subject: Subject) -> Iterator[MillError]:
    """What stands around documents and is no token, and columns that can't be had; odd delimiters are warned of."""
    if isinstance(subject.tokenizer, MillError):
        return
    try:
        for warning in delimiter_warnings(subject.config.pack, subject.tokenizer):
            logger.warning("%s", warning)
        check_tokenize(subject.config.pack.tokenize, subject.tokenizer)
        if subject.config.scored is None:  # of borrowed scores the pack stage asks their manifest
            check_surprisal(subject.config.pack, subject.tokenizer, subject.config.difficulty.scorer)
    except MillError as error:
        yield error


def _of_scorer(key: str, difficulty: DifficultyConfig) -> Iterator[MillError]:
    kind = SCORERS[difficulty.scorer]
    if absent := [package for package in kind.packages if not _is_installed(package)]:
        yield _absent(f"{key}: scorer {difficulty.scorer}", absent, kind.extra, "another machine for this stage")
        return
    if kind.needs_model and difficulty.model is not None:
        for field, name in (("model", difficulty.model), ("reference_model", difficulty.reference_model)):
            if name is not None and not kind.asks_servers:
                own = f"{key}.context_tokens"
                yield from (
                    restated(e, f"{key}.{field}: {e}") for e in _of_folder(name, own, difficulty.context_tokens)
                )
    if kind.asks_servers:
        from difficulty.scorers.endpoint import look

        yield from (restated(problem, f"{key}: {problem}") for problem in look(difficulty))


def _of_model(model: ModelConfig, tokenizer: TextTokenizer | MillError) -> Iterator[MillError]:
    packages, extra = PACKAGES.get(model.engine, ((), ""))
    if absent := [package for package in packages if not _is_installed(package)]:
        yield _absent(f"engine {model.engine}", absent, extra, "engine: rehearsal")
        return
    try:
        engine = create_engine(model)
        if isinstance(tokenizer, TextTokenizer) or model.engine != "rehearsal":
            load_dialect(model, tokenizer if isinstance(tokenizer, TextTokenizer) else None)
    except MillError as error:
        yield error
        return
    if model.engine == "vllm":
        yield from _of_folder(model.name, "max_model_len", model.max_model_len)
    elif model.engine == "endpoint":
        from augment.engines.endpoint import EndpointEngine

        assert isinstance(engine, EndpointEngine)
        yield from engine.look()


def _of_folder(name: str, key: str, tokens: int) -> Iterator[MillError]:
    """What in a local model's folder keeps it from being loaded, or from reading so many tokens at once."""
    try:
        folder = Path(resolve_model(name))
        if not folder.is_dir():
            return  # of the hub: what it is shows when it is fetched
        files = {file.suffix for file in folder.iterdir()}
        about: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except MillError as error:
        yield error
        return
    except (OSError, ValueError) as error:
        yield MillError(f"{name!r} holds no config.json of a model that can be read: {error}")
        return
    if files.isdisjoint(_WEIGHTS):
        yield MillError(f"{name!r} holds no weights ({', '.join(_WEIGHTS)}): fetch the whole model")
    room = about.get("max_position_embeddings")
    if isinstance(room, int) and not about.get("rope_scaling") and tokens > room:
        yield RequestError(f"{key}: {tokens} is more than the {room} tokens that {name!r} reads: set {room} at most")


def _absent(who: str, packages: Sequence[str], extra: str, instead: str) -> MillError:
    names = " and ".join("vLLM" if package == "vllm" else package for package in packages)
    return MillError(f"{who} needs {names}, not installed here: pip install 'thoughtmill[{extra}]', or name {instead}")


def _is_installed(package: str) -> bool:
    with suppress(ValueError):  # a module that stands in for it
        found = importlib.util.find_spec(package)
        return found is not None and found.origin is not None  # a folder that happens to have the name has none
    return True
