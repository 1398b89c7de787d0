"""The side of datatrove's InferenceRunner in `benchmarks.feeding`: the same requests to the same server.

Each request carries its own cap, seed and token ids, as ours does. The runner keeps its default of 500 requests at the
server at once and writes JSON lines; its checkpoints and its request cache are off, which only makes it faster.
"""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datatrove.data import Document  # type: ignore[import-untyped]
from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner  # type: ignore[import-untyped]
from datatrove.pipeline.writers.jsonl import JsonlWriter  # type: ignore[import-untyped]
from loguru import logger

from augment.engines.protocol import GenerationRequest
from benchmarks.feeding_load import Turn, clock


def run_datatrove(requests: Sequence[GenerationRequest], url: str, model_name: str, folder: str) -> Turn:
    """datatrove's turn."""
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    clock.reset()
    payloads = {request.key: _payload(request) for request in requests}
    generated: list[int] = []

    async def rollout(document: Document, generate: Callable[[dict[str, Any]], Any]) -> str:
        clock.note()
        result = await generate(dict(payloads[str(document.id)]))
        generated.append(result.usage["completion_tokens"])
        return str(result.text)

    runner = InferenceRunner(
        rollout_fn=rollout,
        config=InferenceConfig(
            server_type="endpoint", endpoint_url=url, model_name_or_path=model_name, use_chat=False, metric_interval=600
        ),
        output_writer=JsonlWriter(folder),
    )
    runner.run(Document(text="", id=request.key) for request in requests)
    elapsed_s = clock.elapsed_s()
    saved = sum(len(gzip.decompress(file.read_bytes()).splitlines()) for file in Path(folder).rglob("*.jsonl.gz"))
    if not len(generated) == saved == len(requests):  # it only logs a document that it can't save
        raise AssertionError(f"{len(requests)} requests left {len(generated)} results, of which {saved} were saved")
    return Turn(sum(generated), elapsed_s)


def _payload(request: GenerationRequest) -> dict[str, Any]:
    return {
        "prompt": request.prompt_token_ids.tolist(),
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
    }
