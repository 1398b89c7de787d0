"""Engines: what makes a generation of a request. Each family is one module, named in `ENGINES` of the config.

An engine's class is made from a `ModelConfig` and fulfils `protocol.Engine`.
"""

from __future__ import annotations

import importlib

from augment.engines.config import ENGINES, ModelConfig
from augment.engines.protocol import Engine
from augment.engines.vllm_settings import accelerators_of


def create_engine(model: ModelConfig) -> Engine:
    """The engine of a model, not started yet. Its module is imported now, and with it what it needs."""
    where, _, name = ENGINES[model.engine].partition(":")
    engine: Engine = getattr(importlib.import_module(where), name)(model)
    return engine


def count_replicas(model: ModelConfig) -> int:
    """How many engines of a model this machine is to have."""
    if model.replicas != "auto":
        return model.replicas
    module = importlib.import_module(ENGINES[model.engine].partition(":")[0])
    accelerators = module.accelerators() if hasattr(module, "accelerators") else 0
    return max(1, accelerators // accelerators_of(model))
