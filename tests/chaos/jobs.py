"""A small job, run in this process or in one that can be killed and starts in a moment, Beam and all loaded."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from augment.ledger.reading import read_ledger
from augment.ledger.writer import MAX_UNWRITTEN_FLUSHES
from pipelines.config import MillConfig
from sharding.storage import manifest

FEW_DOCUMENTS = 20
MANY_DOCUMENTS = 200
CAPACITY = 8
"""Requests in flight at once in the slow engine."""

FLUSH_ROWS = 4
UNFLUSHED = CAPACITY + 2 * FLUSH_ROWS
"""What a kill may cost at most: a part that is being written, one that is being filled, and what came meanwhile."""
UNWRITTEN = CAPACITY + (MAX_UNWRITTEN_FLUSHES + 1) * FLUSH_ROWS
"""The same on a store that refuses calls: what waits while a part is tried again is bounded by the writer alone."""


def documents(count: int) -> list[dict[str, str]]:
    return [{"id": f"doc-{i}", "text": f"Document {i} says {i * i}. " * (8 + 4 * (i % 20))} for i in range(count)]


def hashes(config: MillConfig) -> dict[str, str]:
    """Name of each shard → its sha256."""
    return {entry.name: entry.sha256 for entry in manifest.require(config.output, "pack").files["shards"]}


def ledger_keys(config: MillConfig) -> list[str]:
    """The keys of all readable rows, duplicates included."""
    return [row.key for row in read_ledger(config.ledger_url, columns=("key",))]


def repeated(config: MillConfig) -> int:
    """How many generations are in the ledger more than once."""
    return sum(count - 1 for count in Counter(ledger_keys(config)).values())


class MadeLog:
    """What engines have handed over, whichever process they were in: a line for each call, as it ended.

    The ledger can't tell: it lacks what was made and not yet written when a process was killed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def follow(self, engine: Any) -> Any:
        """The `generate` of an engine's class, noting what it makes."""
        whole, path = engine.generate, self.path

        async def generate(self: Any, request: Any) -> Any:
            generation = await whole(self, request)
            with path.open("a") as file:
                file.write(f"{request.key} {request.seed}\n")
            return generation

        return generate

    def calls(self) -> list[str]:
        """Key and seed of each call, in order; a closing call has the key of the generation and another seed."""
        return self.path.read_text().splitlines() if self.path.exists() else []

    def keys(self) -> set[str]:
        return {call.partition(" ")[0] for call in self.calls()}

    def again(self) -> int:
        """How many calls were made before."""
        calls = self.calls()
        return len(calls) - len(set(calls))


def run_here(config: MillConfig, stages: tuple[str, ...] = manifest.STAGES) -> dict[str, float]:
    """Run stages in this process; the seconds each took."""
    from pipelines.run import mill

    elapsed_s = {}
    for stage in stages:
        began = time.monotonic()
        mill(config, stages=[stage])
        elapsed_s[stage] = time.monotonic() - began
    return elapsed_s


def _child(
    environment: dict[str, str], tree: dict[str, Any], stages: tuple[str, ...], replace: bool, log: Path, said: Any
) -> None:
    # The fork server has the environment of the test that started it first.
    os.environ.clear()
    os.environ.update(environment)
    from augment.engines.rehearsal import RehearsalEngine
    from pipelines.run import mill
    from pipelines.yaml_config import from_mapping
    from sharding.errors import MillError

    logging.disable(logging.ERROR)
    RehearsalEngine.generate = MadeLog(log).follow(RehearsalEngine)  # type: ignore[method-assign]
    try:
        mill(from_mapping(tree), stages=stages, replace=replace)
        said.send("done")
    except MillError as error:
        said.send(f"{type(error).__name__}: {error}")


class Child:
    """A run in a process of its own."""

    def __init__(
        self, tree: dict[str, Any], log: MadeLog, stages: tuple[str, ...] = manifest.STAGES, *, replace: bool = False
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(
            ["apache_beam", "pipelines.score", "pipelines.augment", "pipelines.select", "pipelines.pack"]
        )
        self._reader, writer = context.Pipe(duplex=False)
        arguments = (dict(os.environ), tree, stages, replace, log.path, writer)
        self.process: BaseProcess = context.Process(target=_child, args=arguments)
        self.process.start()
        writer.close()

    def kill(self) -> bool:
        """End it as the system would when memory is short; whether it was still at work."""
        was_alive = self.process.is_alive()
        self.process.kill()
        self.process.join()
        return was_alive

    def outcome(self, timeout_s: float = 120) -> str:
        """ "done", or the error, or "killed"."""
        self.process.join(timeout_s)
        assert not self.process.is_alive(), "it hangs"
        try:
            return str(self._reader.recv()) if self._reader.poll() else "killed"
        except EOFError:
            return "killed"
