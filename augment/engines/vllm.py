"""vLLM in this process: an AsyncLLM that takes prompt token ids and per-request caps, seeds and stops.

Everything that depends on vLLM's interface is here: its engine arguments (`engine_arguments`), its sampling parameters
(`_sampling_params`), its errors and its processes. Written against 0.32.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import os
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cached_property
from multiprocessing import resource_tracker
from typing import Any

from augment.engines import reaper
from augment.engines.answers import Answer, AnswerReader
from augment.engines.config import ModelConfig
from augment.engines.protocol import (
    EngineDead,
    Generation,
    GenerationFailed,
    GenerationRequest,
    Interrupted,
    RequestRejected,
)
from augment.engines.vllm_settings import (
    DEFAULT_MEMORY_SHARE,
    LOOP_COUNT,
    LOOP_MAX_TOKENS,
    LOOP_MIN_TOKENS,
    engine_arguments,
    idle_devices,
    slots_of,
)
from sharding.errors import PROGRAMMING_ERRORS, MillError, RequestError
from sharding.models.tokenizer import load_tokenizer
from sharding.storage.private import private_folder

logger = logging.getLogger(__name__)


_SLOTS_BEFORE_START = 256


_ABORTED = "abort"
"""How vLLM ends a request that was aborted."""

_TOLD_TO_END = "vLLM was told to end"

_START_TURN_S = 3600.0
"""So long an engine waits for others to start. A process that ends gives its turn back, however it ends."""

_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    # A fork of a process with threads can deadlock.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    # Pinned threads of two engines on one machine would share cores while others idle.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
"""Set unless the user has set them."""

_ENGINE_ENVIRONMENT_ON_CPU = {"OMP_WAIT_POLICY": "PASSIVE"}
"""For the engine's own processes, unless the user has set it: threads that spin while they wait starve each other as
soon as anything else runs on the machine (twice the tokens per second on two busy cores)."""


class VllmEngine:
    """One AsyncLLM and its processes."""

    family = "vllm"

    def __init__(self, model: ModelConfig) -> None:
        self._model = model
        self._engine: Any = None
        self._version = ""
        asked = model.engine_args  # what the start will show, as far as it can be told before
        self._slots = int(asked.get("max_num_seqs") or _SLOTS_BEFORE_START) * int(asked.get("data_parallel_size") or 1)
        self._mark = reaper.new_mark()
        self._watcher: subprocess.Popen[bytes] | None = None
        self._special_ids: dict[str, int] = {}
        self._request_number = itertools.count()
        self._under_way: set[str] = set()
        self._interrupted = False

    @cached_property
    def _reader(self) -> AnswerReader:
        arguments = engine_arguments(self._model, on_cpu=False)
        named = str(arguments.get("tokenizer", self._model.name))
        return AnswerReader(load_tokenizer(named, arguments["tokenizer_revision"]))

    @property
    def version(self) -> str:
        return self._version

    @property
    def capacity(self) -> int:
        # A quarter more than run at once: when some finish, vLLM finds others waiting instead of idling for a step.
        return self._slots + self._slots // 4

    @property
    def memory_share(self) -> float:
        return float(self._model.engine_args.get("gpu_memory_utilization", DEFAULT_MEMORY_SHARE))

    async def start(self) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            import vllm
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.platforms import current_platform
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            raise MillError(
                f"model {self._model.name} needs vLLM, which can't be imported ({error}); install it with: "
                "pip install 'thoughtmill[vllm]', or name engine: rehearsal"
            ) from error
        self._version = vllm.__version__
        on_cpu = bool(current_platform.is_cpu())
        arguments = engine_arguments(self._model, on_cpu)
        known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
        if unknown := sorted(set(arguments) - known):
            raise RequestError(f"engine_args.{unknown[0]}: vLLM {self._version} has no such engine argument")

        _ = self._reader  # what can't be read shouldn't be generated

        resource_tracker.ensure_running()  # outlives the engine, so it must not carry its mark
        self._watcher = reaper.watch(self._mark)
        async with _start_turn():
            try:
                with _engine_environment(self._mark, _ENGINE_ENVIRONMENT_ON_CPU if on_cpu else {}):
                    self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
            except Exception as error:
                raise MillError(
                    f"vLLM could not start model {self._model.name}: {error} (set VLLM_LOGGING_LEVEL=INFO to see more)"
                ) from error
        self._slots = slots_of(self._engine.vllm_config)
        devices = current_platform.device_count() if current_platform.is_cuda_alike() else 0
        if idle := idle_devices(self._engine.vllm_config, devices):
            logger.warning("%s: %s", self._model.name, idle)
        tokenizer = self._engine.get_tokenizer()
        tokenizer = await tokenizer if asyncio.iscoroutine(tokenizer) else tokenizer
        special = set(tokenizer.all_special_ids)
        self._special_ids = {text: i for text, i in tokenizer.get_added_vocab().items() if i in special}

    async def generate(self, request: GenerationRequest) -> Generation:
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        engine = self._engine
        if engine is None:
            raise EngineDead(f"the engine of {self._model.name} is closed")
        if self._interrupted:
            raise Interrupted(_TOLD_TO_END)
        if len(request.prompt_token_ids) + request.max_tokens > self._model.max_model_len:
            raise RequestRejected(
                f"a prompt of {len(request.prompt_token_ids)} tokens and max_tokens {request.max_tokens} do not fit "
                f"max_model_len {self._model.max_model_len} of {self._model.name}"
            )
        prompt = {"type": "token", "prompt_token_ids": request.prompt_token_ids.tolist()}
        name = f"{request.key}-{next(self._request_number)}"
        last = None
        self._under_way.add(name)
        try:
            async for output in engine.generate(prompt, self._sampling_params(request), request_id=name):
                last = output
        except EngineDeadError as error:
            raise EngineDead(str(error)) from error
        except (VLLMClientError, ValueError) as error:
            raise RequestRejected(f"vLLM refused the request: {error}") from error
        except EngineGenerateError as error:
            cause = error.__cause__ or error
            if isinstance(cause, PROGRAMMING_ERRORS):  # it would be the same the next time
                raise RequestRejected(f"vLLM failed at the request: {cause!r}") from error
            raise GenerationFailed(f"vLLM: {cause!r}") from error
        finally:
            self._under_way.discard(name)
        if last is None:
            raise GenerationFailed("vLLM ended the request without an answer")
        completion = last.outputs[0]
        answer = Answer(
            text=completion.text,
            token_ids=completion.token_ids,
            sum_logprobs=completion.cumulative_logprob,
            finish_reason=completion.finish_reason,
            engine_version=self._version,
        )
        if completion.finish_reason == _ABORTED:  # by `interrupt`, or by a SIGTERM that its processes got too
            begun = self._reader.read_partial(request, answer) if completion.token_ids else None
            raise Interrupted(_TOLD_TO_END, begun)
        return self._reader.read(request, answer)

    async def interrupt(self) -> None:
        self._interrupted = True
        if self._engine is not None and self._under_way:
            await self._engine.abort(sorted(self._under_way))

    async def close(self) -> None:
        engine, self._engine = self._engine, None
        try:
            if engine is not None:
                engine.shutdown()
        finally:
            if self._watcher is not None:
                reaper.end_marked(self._mark)
                self._watcher.terminate()
                self._watcher.wait()
                self._watcher = None

    def _sampling_params(self, request: GenerationRequest) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RepetitionDetectionParams, RequestOutputKind

        loops = None
        if request.repetition_detection:
            loops = RepetitionDetectionParams(
                min_pattern_size=LOOP_MIN_TOKENS, max_pattern_size=LOOP_MAX_TOKENS, min_count=LOOP_COUNT
            )
        return SamplingParams(
            max_tokens=request.max_tokens,
            min_tokens=request.min_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            stop=list(request.stop) or None,
            # Special tokens never show in the text, so as stop texts they would not be found.
            stop_token_ids=[self._special_ids[text] for text in request.stop if text in self._special_ids],
            include_stop_str_in_output=request.include_stop,
            logprobs=0,  # of the sampled tokens only
            flat_logprobs=True,
            repetition_detection=loops,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )


@contextmanager
def _engine_environment(mark: str, defaults: dict[str, str]) -> Iterator[None]:
    """What the engine's processes inherit: their mark, and defaults where nothing is set."""
    ours = {name: os.environ.get(name, value) for name, value in defaults.items()}
    ours |= {reaper.MARK_VARIABLE: mark, "VLLM_PROCESS_NAME_PREFIX": f"VLLM-{mark}"}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@asynccontextmanager
async def _start_turn() -> AsyncIterator[None]:
    """Engines start one at a time on a machine: each measures free memory and picks free ports while it starts.

    Raises:
        MillError: another one has been starting for longer than any takes.
    """
    from filelock import FileLock, Timeout

    lock, until = FileLock(private_folder() / "engine-start.turn"), time.monotonic() + _START_TURN_S
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except Timeout:
            if time.monotonic() > until:
                raise MillError(
                    f"another engine of this user has been starting for {_START_TURN_S / 60:.0f} min and holds "
                    f"{lock.lock_file}: end its process"
                ) from None
            await asyncio.sleep(min(0.5, _START_TURN_S))
    try:
        yield
    finally:
        lock.release()
