"""Engines: what makes a generation of a request. Each family is one module, named in `ENGINES` of the config.

An engine's class is made from a `ModelConfig` and fulfils `protocol.Engine`.
"""

from __future__ import annotations

import importlib

from augment.engines.config import ENGINES, ModelConfig
from augment.engines.protocol import Engine


def create_engine(model: ModelConfig) -> Engine:
    """The engine of a model, not started yet. Its module is imported now, and with it what it needs."""
    where, _, name = ENGINES[model.engine].partition(":")
    engine: Engine = getattr(importlib.import_module(where), name)(model)
    return engine
