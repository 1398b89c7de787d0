"""Continuing: an interrupted generation is gone on with by prefill. Between requests and the engine; pure.

The prompt of the next call is that of the first one with the tokens that are there behind it, and its cap is less by
what was paid for them. So nothing is bought twice, and any engine that holds the model can go on.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from augment.engines.protocol import Generation, GenerationRequest
from augment.traces import PARTIAL
from sharding.hashing import seed_of
from sharding.records.types import LedgerRow


def generation_of(row: LedgerRow) -> Generation:
    """What a partial row of the ledger holds, as its engine gave it."""
    return Generation(
        text=row.text,
        token_ids=row.token_ids.astype(np.uint32),
        sum_logprobs=row.sum_logprobs,
        finish_reason=row.finish_reason,
        engine_version=row.engine_version,
        unseen_tokens=row.thought_tokens - len(row.token_ids),
        model=row.model,
        continued=row.continued,
    )


def rest_of(request: GenerationRequest, begun: Generation) -> GenerationRequest | None:
    """The call that goes on from what there is of a request; None where that is whole.

    Its seed follows from the key and from where it begins: that of the first call would draw the same numbers again.
    """
    if begun.finish_reason != PARTIAL or begun.paid_tokens >= request.max_tokens:
        return None
    return dataclasses.replace(
        request,
        prompt_token_ids=np.concatenate([request.prompt_token_ids, begun.token_ids]).astype(np.uint32),
        max_tokens=request.max_tokens - begun.paid_tokens,
        min_tokens=max(0, request.min_tokens - len(begun.token_ids)),
        seed=seed_of(f"{request.key}/from-{len(begun.token_ids)}"),
    )


def whole(begun: Generation) -> Generation:
    """What there is of a request of which nothing is left to ask: it has come to its cap, or had ended before."""
    return dataclasses.replace(begun, finish_reason="length") if begun.finish_reason == PARTIAL else begun


def join_rest(begun: Generation, rest: Generation) -> Generation:
    """What there was and what came after it, as one generation that ends as the second does."""
    logprobs = (begun.sum_logprobs, rest.sum_logprobs)
    return Generation(
        text=begun.text + rest.text,
        token_ids=np.concatenate([begun.token_ids, rest.token_ids]).astype(np.uint32),
        sum_logprobs=None if logprobs[0] is None or logprobs[1] is None else logprobs[0] + logprobs[1],
        finish_reason=rest.finish_reason,
        engine_version=rest.engine_version,
        unseen_tokens=begun.unseen_tokens + rest.unseen_tokens,
        model=rest.model,
        continued=begun.continued + 1,
    )
