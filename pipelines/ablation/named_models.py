"""The model that the section `ablation.model` names: where it is, and what tells one version of it from another."""

from __future__ import annotations

from pathlib import Path

from pipelines.ablation.config import StudentConfig
from sharding.errors import MillError, RequestError
from sharding.models.store import content_digest, model_fingerprint, resolve_model


def named_model(config: StudentConfig) -> tuple[str, str] | None:
    """The key of the section that names a model, and where that is: a folder or a hub id; None: it names none.

    Raises:
        RequestError: there is none of this name.
    """
    key, name = ("checkpoint", config.checkpoint) if config.checkpoint else ("config", config.config)
    if name is None:
        return None
    try:
        return key, resolve_model(name)
    except MillError as error:
        raise RequestError(f"ablation.model.{key}: {name!r} can't be loaded: {error}") from error


def content_of(config: StudentConfig) -> str:
    """What tells what is loaded: all of a checkpoint, of an architecture its config.json; "" where none is named.

    Raises:
        RequestError: there is none.
        MillError: it can't be read, or the commit of a hub id is not to be had.
    """
    if (named := named_model(config)) is None:
        return ""
    key, place = named
    if key == "checkpoint" or not Path(place).is_dir():
        return model_fingerprint(place)
    try:
        return content_digest(Path(place) / "config.json")
    except OSError as error:
        raise RequestError(f"ablation.model.{key}: {config.config!r} can't be loaded: {error}") from error
