"""What vLLM is told of a model, and what its config says of an engine. Imports no vLLM; written against 0.32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from augment.engines.config import ModelConfig
from sharding.errors import RequestError
from sharding.models.store import resolve_model

DEFAULT_MEMORY_SHARE = 0.9
"""Of the accelerator's memory, as vLLM's `gpu_memory_utilization`."""


LOOP_MIN_TOKENS, LOOP_MAX_TOKENS, LOOP_COUNT = 8, 32, 8
"""A generation is a loop when it ends in one pattern of 8 to 32 tokens, 8 times over: rules and table borders of one
repeated token stay below that, and a loop costs at most 256 tokens."""


def engine_arguments(model: ModelConfig, on_cpu: bool) -> dict[str, Any]:
    """vLLM's engine arguments for a model: ours, then those of `engine_args` on top."""
    arguments: dict[str, Any] = {
        "model": resolve_model(model.name),
        "revision": model.revision,
        "tokenizer_revision": model.revision,
        "max_model_len": model.max_model_len,
        "gpu_memory_utilization": DEFAULT_MEMORY_SHARE,
        "logprobs_mode": "processed_logprobs",  # of the distribution that was sampled from
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if on_cpu:
        arguments |= {
            "dtype": "float32",
            "enforce_eager": True,  # compiling takes longer than it saves
            "max_num_seqs": 32,
            "kv_cache_memory_bytes": 2 << 30,
            # On CPU a seed kills the engine as soon as a prompt's prefill is cut in chunks (0.32.0).
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(4096, model.max_model_len),
        }
    return arguments | model.engine_args


def slots_of(config: Any) -> int:
    """Requests that an engine of this vLLM config runs at once, in all data-parallel replicas that it gives them to."""
    scheduler, parallel = config.scheduler_config, config.parallel_config
    replicas = parallel.data_parallel_size_local if parallel.local_engines_only else parallel.data_parallel_size
    return int(getattr(scheduler, "max_num_active_seqs", None) or scheduler.max_num_seqs) * int(replicas)


def accelerators_of(model: ModelConfig) -> int:
    """Accelerators that one engine of a model takes."""
    sizes = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
    return math.prod(int(model.engine_args.get(size) or 1) for size in sizes)


def slice_of(model: ModelConfig, visible: Sequence[str], replica: int, replicas: int) -> list[str]:
    """The accelerators of one of a model's replicas.

    Args:
        visible: what this process may use, as the variable that says so has it.
        replica: from 0.

    Raises:
        RequestError: there are too few for all of them.
    """
    each = accelerators_of(model)
    if each * replicas > len(visible):
        raise RequestError(
            f"models: {replicas} replicas of {model.name} on {each} accelerators each need {each * replicas}, and "
            f"{len(visible)} are visible: lower replicas, or set replicas: auto"
        )
    return list(visible[replica * each : (replica + 1) * each])


def idle_devices(config: Any, devices: int) -> str | None:
    """What to say where an engine of this vLLM config leaves accelerators of this machine without work, or None.

    Args:
        devices: accelerators that this process may use.
    """
    parallel = config.parallel_config
    used = parallel.world_size * parallel.data_parallel_size_local
    if used * 2 > devices:  # no room for another replica of each
        return None
    return (
        f"vLLM works on {used} of {devices} accelerators; for an engine of the model on each, set "
        f"replicas: {devices // parallel.world_size}, or auto"
    )
