"""The side of Beam's own vLLM handler in `benchmarks.feeding`: RunInference over the same prompts.

The handler is Beam's, batching and all, but for the server: instead of starting one per pipeline it is given the one
that runs, so that all sides talk to the same process. Importing this imports vLLM.
"""

from __future__ import annotations

from typing import Any

import apache_beam as beam
from apache_beam.ml.inference.base import PredictionResult, RunInference
from apache_beam.ml.inference.vllm_inference import VLLMCompletionsModelHandler
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from benchmarks.feeding_load import Turn, clock


class RunningServer:
    """What the handler asks of its server: where it is, and after an error whether it is well."""

    def __init__(self, port: int) -> None:
        self._port = port

    def get_server_port(self) -> int:
        return self._port

    def check_connectivity(self) -> None: ...


class HandlerOfRunningServer(VLLMCompletionsModelHandler):
    """Beam's handler on a server that runs already."""

    def __init__(self, model_name: str, port: int, **batching: Any) -> None:
        super().__init__(model_name, **batching)
        self._port = port

    def load_model(self) -> Any:
        return RunningServer(self._port)


_generated: list[int] = []


def note_start(prompt: str) -> str:
    """Passes a prompt on and starts the clock with the first."""
    clock.note()
    return prompt


def note_result(result: PredictionResult) -> None:
    """Counts the tokens of one answer."""
    _generated.append(result.inference.usage.completion_tokens)


def run_handler(prompts: list[str], url: str, model_name: str, inference_args: dict[str, Any], **batching: Any) -> Turn:
    """The handler's turn; `batching` as its constructor takes it, none for its defaults."""
    clock.reset()
    _generated.clear()
    handler = HandlerOfRunningServer(model_name, int(url.rpartition(":")[2]), **batching)
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        _ = (
            pipeline
            | beam.Create(prompts, reshuffle=False)
            | beam.Reshuffle()
            | "Start" >> beam.Map(note_start)
            | RunInference(handler, inference_args=inference_args)
            | "Count" >> beam.Map(note_result)
        )
    elapsed_s = clock.elapsed_s()
    if len(_generated) != len(prompts):
        raise AssertionError(f"{len(prompts)} prompts left {len(_generated)} results")
    return Turn(sum(_generated), elapsed_s)
