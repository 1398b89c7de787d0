"""Ours against Beam's vLLM handler and against datatrove's InferenceRunner, all on one vLLM server.

Against the handler: it has one set of sampling parameters for the whole transform, so both sides cap every answer at
the same length and the lengths differ by where answers end of themselves. Greedy, so that both sides get the same text.
Against datatrove: caps, seeds and temperature of each request, the same for both. Ours are requests of the endpoint
engine, with `max_in_flight` as our vLLM engine would set it: a quarter more than the server runs at once.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from augment.engines.config import ModelConfig, SamplingConfig
from augment.feeding import worker
from benchmarks.feeding_bare import CAPS, LONG_TASK, generation_requests
from benchmarks.feeding_load import MAX_MODEL_LEN, Turn, make_load, run_ours, take_turns
from benchmarks.feeding_server import serve
from sharding.models.store import resolve_model

NATURAL_CAP = 128

Turns = dict[str, list[Turn]]


def compare(
    model_name: str,
    *,
    handler_count: int,
    datatrove_count: int,
    rounds: int,
    slots: int,
    engine_args: dict[str, Any],
) -> dict[str, Turns]:
    """The turns by peer, "handler" and "datatrove", each with so many requests; none with 0."""
    turns: dict[str, Turns] = {}
    served = ModelConfig(
        engine="vllm", name=model_name, max_model_len=MAX_MODEL_LEN, engine_args={"max_num_seqs": slots, **engine_args}
    )
    with tempfile.TemporaryDirectory() as name, serve(served, Path(name) / "server.log") as url:
        sides = Sides(model_name, url, Path(name), slots)
        try:
            if handler_count:
                turns["handler"] = sides.beside_handler(handler_count, rounds)
            if datatrove_count:
                turns["datatrove"] = sides.beside_datatrove(datatrove_count, rounds)
        finally:
            worker.close_all()
    return turns


class Sides:
    """The sides, on a server that runs.

    Args:
        slots: how many requests the server runs at once.
    """

    def __init__(self, model_name: str, url: str, folder: Path, slots: int) -> None:
        self._model_name, self._url, self._folder, self._slots = model_name, url, folder, slots
        self._served_name = resolve_model(model_name)
        self._model = ModelConfig(
            engine="endpoint",
            name=model_name,
            served_name=self._served_name,
            urls=(url,),
            max_model_len=MAX_MODEL_LEN,
            max_in_flight=slots + slots // 4,
        )

    def beside_handler(self, count: int, rounds: int) -> Turns:
        """Ours and the handler, with its default batching, with batches that fill the server, and all in one batch."""
        from benchmarks.feeding_beam_handler import run_handler

        sampling = SamplingConfig(temperature=0.0, top_p=1.0, repetition_detection=False)
        load = make_load(
            self._model,
            self._folder,
            tokenizer=self._model_name,
            count=count,
            caps=(NATURAL_CAP,),
            sampling=sampling,
        )
        prompts = load.texts()
        arguments = {"max_tokens": NATURAL_CAP, "temperature": 0.0}

        def handler(**batching: Any) -> Turn:
            return run_handler(prompts, self._url, self._served_name, arguments, **batching)

        slots = self._slots
        return take_turns(
            {
                "ours": lambda number: run_ours(load, f"{self._folder}/handler-{number}"),
                "handler": lambda number: handler(),
                "handler, full batches": lambda number: handler(min_batch_size=slots, max_batch_size=slots),
                "handler, one batch": lambda number: handler(min_batch_size=count, max_batch_size=count),
            },
            rounds,
        )

    def beside_datatrove(self, count: int, rounds: int) -> Turns:
        """Ours and datatrove's runner."""
        from benchmarks.feeding_datatrove import run_datatrove

        sampling = SamplingConfig(repetition_detection=False)
        load = make_load(
            self._model,
            self._folder,
            tokenizer=self._model_name,
            count=count,
            caps=CAPS,
            task=LONG_TASK,
            sampling=sampling,
        )
        requests = generation_requests(load)
        return take_turns(
            {
                "ours": lambda number: run_ours(load, f"{self._folder}/datatrove-{number}"),
                "datatrove": lambda number: run_datatrove(
                    requests, self._url, self._served_name, f"{self._folder}/datatrove-output-{number}"
                ),
            },
            rounds,
        )
