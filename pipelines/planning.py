"""What of a model's config decides a text."""

from __future__ import annotations

from augment.engines.config import ModelConfig
from pipelines import yaml_config


def what_decides_text(model: ModelConfig) -> dict[str, object]:
    """The parts of a model's config that can change a text; prices and queue lengths can't."""
    plain = yaml_config.to_mapping(model)
    return {
        key: plain[key]
        for key in ("engine", "name", "served_name", "revision", "max_model_len", "thinking", "engine_args")
    }
