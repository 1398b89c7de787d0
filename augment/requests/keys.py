"""From a prompt to requests: the keys that name generations, and the seeds and jitter that follow from them.

A generation is bought once per key, for good, so the key covers everything that decides the text: `what_decides_text`
says what of a model does, to the ledger's keys, to the augment stage's fingerprint and to the pilot's alike. Randomness
comes from keys alone: the same request gives the same seed on any worker, in any bundle, in any order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from augment.engines.config import EngineFamily, ModelConfig, SamplingConfig
from augment.engines.protocol import Closing, GenerationRequest
from sharding.hashing import fingerprint, seed_of
from sharding.models.store import model_fingerprint, resolve_model

SPEED_ONLY: dict[EngineFamily, frozenset[str]] = {
    "vllm": frozenset(
        {
            *("gpu_memory_utilization", "kv_cache_memory_bytes", "num_gpu_blocks_override", "block_size"),
            *("cpu_offload_gb", "kv_offloading_size", "enable_prefix_caching", "enable_chunked_prefill"),
            *("max_num_seqs", "max_num_batched_tokens", "max_num_scheduled_tokens", "long_prefill_token_threshold"),
            *("scheduling_policy", "async_scheduling", "enforce_eager", "stream_interval"),
            *("tensor_parallel_size", "pipeline_parallel_size", "decode_context_parallel_size"),
            *("data_parallel_size", "data_parallel_size_local", "data_parallel_rank", "data_parallel_start_rank"),
            *("data_parallel_address", "data_parallel_rpc_port", "data_parallel_backend"),
            *("enable_expert_parallel", "enable_eplb", "distributed_executor_backend", "disable_custom_all_reduce"),
            *("nnodes", "node_rank", "master_addr", "master_port", "device_ids"),
            *("max_parallel_loading_workers", "download_dir", "hf_token", "use_tqdm_on_load"),
            *("disable_log_stats", "enable_log_requests"),
        }
    ),
    "endpoint": frozenset({"priority"}),
    "rehearsal": frozenset({"tokens_per_second", "capacity"}),
}
"""The keys of `engine_args` that change how fast a text comes and how much memory it takes, and of the text no more
than the last bit of a sum does. Whatever isn't named here decides the text: dtype, quantization, kv_cache_dtype, top_k,
adapters, and what an engine may add."""

_ONLY_IN_PROMPT: dict[EngineFamily, frozenset[str]] = {
    "vllm": frozenset({"thinking"}),
    "endpoint": frozenset({"thinking", "max_model_len"}),
    "rehearsal": frozenset({"thinking", "max_model_len"}),
}
"""What acts through the prompt, whose ids are in the key. vLLM has more from `max_model_len`: models with two sets of
rotary factors (LongRoPE) take one or the other by it."""


def revision_of(model: ModelConfig) -> str:
    """The content of what is loaded on this side: the weights, or, of a model that servers hold, its tokenizer.

    Raises:
        MillError: it is not to be had; see `sharding.models.store.model_fingerprint`.
    """
    if model.engine == "rehearsal":
        return model.revision or "main"
    loaded = model.engine_args.get("tokenizer", model.name) if model.engine == "endpoint" else model.name
    return model_fingerprint(resolve_model(str(loaded)), model.revision)


def what_decides_text(model: ModelConfig) -> dict[str, Any]:
    """What of a model's config decides its texts, as JSON values; prices, addresses and queue lengths don't.

    Raises:
        MillError: as `revision_of`.
    """
    return {
        "engine": model.engine,
        "name": model.name,
        "served_name": None if model.served_name == model.name else model.served_name,
        "revision": revision_of(model),
        "max_model_len": model.max_model_len,
        "thinking": model.thinking,
        "engine_args": {
            name: value for name, value in sorted(model.engine_args.items()) if name not in SPEED_ONLY[model.engine]
        },
    }


def request_key(
    decides: Mapping[str, Any],
    prompt_token_ids: np.ndarray,
    *,
    sampling: SamplingConfig,
    max_tokens: int,
    min_tokens: int = 0,
    stop: tuple[str, ...] = (),
    closing: Closing | None = None,
) -> str:
    """The key shared by all samples of one prompt; `sharding.records.sample_key` adds the sample.

    Args:
        decides: `what_decides_text` of the model.
        prompt_token_ids: (prompt_tokens,) under the generator's tokenizer.
        stop: stop texts beside those of `sampling`, as given to `make_request`.

    Returns:
        32 hex digits: 128 bits of BLAKE2b.
    """
    only_in_prompt = _ONLY_IN_PROMPT[decides["engine"]]
    settings = {
        "model": {name: value for name, value in decides.items() if name not in only_in_prompt},
        "max_tokens": max_tokens,
        "min_tokens": min_tokens,
        "temperature": float(sampling.temperature),
        "top_p": float(sampling.top_p),
        "seed": sampling.seed,
        "stop": _all_stops(sampling, stop),
        "repetition_detection": sampling.repetition_detection,
        "closing": closing and [closing.reserve_tokens, closing.phrase, closing.phrase_token_ids.tolist()],
    }
    told = json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)
    return fingerprint([told, b"\0", np.ascontiguousarray(prompt_token_ids, dtype="<u4").tobytes()])


def length_kind(tier: str, model: str, prompt_version: str) -> str:
    """What generations have in common whose lengths are alike: see `GenerationRequest.kind`.

    Args:
        model: as a ledger row names it.
    """
    return f"{tier}/{model}/{prompt_version}"


def make_request(
    key: str,
    prompt_token_ids: np.ndarray,
    *,
    sampling: SamplingConfig,
    max_tokens: int,
    min_tokens: int = 0,
    expected_tokens: float = 0.0,
    kind: str = "",
    prefix_group: str = "",
    stop: tuple[str, ...] = (),
    closing: Closing | None = None,
) -> GenerationRequest:
    """The request for one sample, its seed taken from its key.

    Args:
        key: `sharding.records.sample_key` of the request's key.
        stop: stop texts beside those of `sampling`, such as the end of the model's thinking (`Dialect.stop`).
    """
    return GenerationRequest(
        key=key,
        prompt_token_ids=prompt_token_ids,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        expected_tokens=expected_tokens,
        kind=kind,
        prefix_group=prefix_group,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=seed_of(key),
        stop=_all_stops(sampling, stop),
        repetition_detection=sampling.repetition_detection,
        closing=closing,
    )


def _all_stops(sampling: SamplingConfig, stop: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*sampling.stop, *stop)))
