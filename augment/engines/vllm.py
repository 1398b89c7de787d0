"""vLLM in this process: an AsyncLLM that takes prompt token ids and per-request caps, seeds and stops.

Everything that depends on vLLM's interface is here: its engine arguments (`engine_arguments`), its sampling parameters
(`_sampling_params`), its errors and its processes. Written against 0.32.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import os
import subprocess
from collections.abc import Callable
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
    slice_of,
    slots_of,
)
from augment.engines.vllm_start import ON_CPU, engine_environment, set_environment, start_turn
from sharding.errors import PROGRAMMING_ERRORS, MillError, RequestError
from sharding.models.tokenizer import load_tokenizer

logger = logging.getLogger(__name__)


_SLOTS_BEFORE_START = 256


_ABORTED = "abort"
"""How vLLM ends a request that was aborted."""

_TOLD_TO_END = "vLLM was told to end"


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
        self._place: tuple[int, int] | None = None

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

    def place(self, replica: int, replicas: int) -> None:
        self._place = replica, replicas

    async def start(self) -> None:
        set_environment()
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

        devices = current_platform.device_count() if current_platform.is_cuda_alike() else 0
        ours = {}
        if self._place is not None and devices:
            variable = current_platform.device_control_env_var
            visible = os.environ.get(variable, "").split(",") if os.environ.get(variable) else range(devices)
            ours = {variable: ",".join(slice_of(self._model, [str(one) for one in visible], *self._place))}

        def make() -> Any:
            with engine_environment(self._mark, ON_CPU if on_cpu else {}, ours):
                return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))

        async with start_turn():
            # What starts here must not carry the mark of an engine that is just being made.
            resource_tracker.ensure_running()  # outlives the engine
            self._watcher = reaper.watch(self._mark)
            try:
                self._engine = await self._beside(make)
            except Exception as error:
                raise MillError(
                    f"vLLM could not start model {self._model.name}: {error} (set VLLM_LOGGING_LEVEL=INFO to see more)"
                ) from error
        self._slots = slots_of(self._engine.vllm_config)
        if self._place is None and (idle := idle_devices(self._engine.vllm_config, devices)):
            logger.warning("%s: %s", self._model.name, idle)
        tokenizer = self._engine.get_tokenizer()
        tokenizer = await tokenizer if asyncio.iscoroutine(tokenizer) else tokenizer
        special = set(tokenizer.all_special_ids)
        self._special_ids = {text: i for text, i in tokenizer.get_added_vocab().items() if i in special}

    async def _beside(self, make: Callable[[], Any]) -> Any:
        """What a function makes that takes a minute, on another thread: other engines of this loop go on."""
        making = asyncio.create_task(asyncio.to_thread(make))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            reaper.end_marked(self._mark)  # nobody waits for it any more
            with contextlib.suppress(Exception):
                self._engine = await making
            raise

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


def accelerators() -> int:
    """Accelerators that this process may use; 0 on a CPU, or where there is no vLLM to ask."""
    set_environment()
    try:
        from vllm.platforms import current_platform
    except ImportError:
        return 0
    return int(current_platform.device_count()) if current_platform.is_cuda_alike() else 0
