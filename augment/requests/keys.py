"""From a prompt to requests: the keys that name generations, and the seeds and jitter that follow from them.

A generation is bought once per key, for good, so the key covers everything that decides the text. Randomness comes
from keys alone: the same request gives the same seed on any worker, in any bundle, in any order.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np

from augment.engines.config import SamplingConfig
from augment.engines.protocol import Closing, GenerationRequest
from sharding.hashing import seed_of


def request_key(
    *,
    model: str,
    revision: str,
    engine: str,
    prompt_token_ids: np.ndarray,
    sampling: SamplingConfig,
    max_tokens: int,
    min_tokens: int = 0,
    stop: tuple[str, ...] = (),
    closing: Closing | None = None,
) -> str:
    """The key shared by all samples of one prompt; `sharding.records.sample_key` adds the sample.

    Args:
        model: the model's name from the config.
        revision: what tells its versions apart, from `sharding.models.store.model_fingerprint`.
        engine: engine family, such as "vllm".
        prompt_token_ids: (prompt_tokens,) under the generator's tokenizer.
        stop: stop texts beside those of `sampling`, as given to `make_request`.

    Returns:
        32 hex digits: 128 bits of BLAKE2b.
    """
    settings = {
        "model": model,
        "revision": revision,
        "engine": engine,
        "max_tokens": max_tokens,
        "min_tokens": min_tokens,
        "temperature": float(sampling.temperature),
        "top_p": float(sampling.top_p),
        "seed": sampling.seed,
        "stop": _all_stops(sampling, stop),
        "repetition_detection": sampling.repetition_detection,
        "closing": closing and [closing.reserve_tokens, closing.phrase, closing.phrase_token_ids.tolist()],
    }
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode())
    digest.update(b"\0" + np.ascontiguousarray(prompt_token_ids, dtype="<u4").tobytes())
    return digest.hexdigest()


def make_request(
    key: str,
    prompt_token_ids: np.ndarray,
    *,
    sampling: SamplingConfig,
    max_tokens: int,
    min_tokens: int = 0,
    expected_tokens: float = 0.0,
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
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=seed_of(key),
        stop=_all_stops(sampling, stop),
        repetition_detection=sampling.repetition_detection,
        closing=closing,
    )


def _all_stops(sampling: SamplingConfig, stop: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*sampling.stop, *stop)))
