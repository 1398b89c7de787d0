"""Engines: what makes a generation of a request. Each family is one module; `create_engine` is the table of them."""

from __future__ import annotations

from augment.engines.config import ModelConfig
from augment.engines.protocol import Engine


def create_engine(model: ModelConfig) -> Engine:
    """The engine of a model, not started yet."""
    if model.engine == "vllm":
        from augment.engines.vllm import VllmEngine

        return VllmEngine(model)
    if model.engine == "endpoint":
        from augment.engines.endpoint import EndpointEngine

        return EndpointEngine(model)
    from augment.engines.rehearsal import RehearsalEngine

    return RehearsalEngine(model)
