"""A bundle of recipes in a process of its own, which kills itself between two calls; for `test_recipes`."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import time
from pathlib import Path
from typing import Any

from augment.engines.config import ModelConfig
from augment.engines.protocol import Generation, GenerationRequest
from augment.engines.rehearsal import RehearsalEngine
from augment.feeding import registry, worker
from augment.feeding.worker import WorkOrder
from augment.ledger.reading import read_ledger
from augment.ledger.transforms import missing_samples
from augment.transforms import _GenerateFn
from pipelines.joints import trace_planner
from pipelines.yaml_config import from_mapping
from sharding import records
from sharding.records.types import Request


class FallingEngine(RehearsalEngine):
    """Notes each call that it has made; kills its process when the call of a number begins.

    Every call ends by itself: one that the cap cuts is closed by a second call of the same trace, and would be among
    those counted here.
    """

    def __init__(self, model: ModelConfig, folder: Path, falls_at: int | None) -> None:
        super().__init__(model)
        self._folder, self._falls_at, self._number = folder, falls_at, itertools.count()

    async def generate(self, request: GenerationRequest) -> Generation:
        number = next(self._number)
        if number == self._falls_at:
            # What has ended is in the ledger: else it would be lost with the process, as anything is for a moment.
            until = time.monotonic() + 20
            while len({row.key for row in read_ledger(str(self._folder / "ledger"))}) < len(made(self._folder)):
                assert time.monotonic() < until
                time.sleep(0.005)
            os.kill(os.getpid(), signal.SIGKILL)
        generation = dataclasses.replace(await super().generate(request), finish_reason="stop")
        with (self._folder / "made").open("a", encoding="utf-8") as file:
            file.write(f"{request.key} {request.seed} {request.max_tokens}\n")
        return generation


def made(folder: Path) -> list[str]:
    """What the engines of all processes have made: key, seed and cap of each call."""
    path = folder / "made"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def order_in(folder: Path) -> WorkOrder:
    """A run whose ledger is in a folder, each row in it as soon as it is made."""
    return WorkOrder(
        run_id=str(time.time_ns()),
        began_ms=time.time_ns() // 1_000_000,
        ledger_url=str(folder / "ledger"),
        flush_rows=1,
        flush_seconds=0.01,
    )


def run_bundle(tree: dict[str, Any], requests: list[bytes], folder: Path, falls_at: int | None) -> None:
    """One bundle of all that the ledger lacks of some requests, for a process of its own."""
    config = from_mapping(tree)
    registry.create_engine = lambda model: FallingEngine(model, folder, falls_at)
    order = order_in(folder)
    rows = list(read_ledger(order.ledger_url))
    elements: list[Any] = []
    for request in (records.decode(Request, one) for one in requests):
        own = [row for row in rows if row.request_key == request.request_key]
        found = missing_samples((request.request_key, {"requests": [request], "rows": own, "begun": []}))
        elements += [one for one in found if isinstance(one, tuple)]
    fn = _GenerateFn(trace_planner(config), "pretend", config.feeding, order)
    fn.start_bundle()
    for element in elements:
        list(fn.process(element))
    list(fn.finish_bundle())
    worker.close_all()
