"""A small job, run in this process or in one that can be killed and starts in a moment, Beam and all loaded."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from typing import Any

from augment.ledger import read_ledger
from pipelines.config import MillConfig
from sharding import manifest

NUM_DOCUMENTS = 20
CAPACITY = 8
"""Requests in flight at once: what a kill may cost, besides rows that wait for the next flush."""


def documents() -> list[dict[str, str]]:
    return [{"id": f"doc-{i}", "text": f"Document {i} says {i * i}. " * (8 + 4 * i)} for i in range(NUM_DOCUMENTS)]


def hashes(config: MillConfig) -> dict[str, str]:
    """Name of each shard → its sha256."""
    return {entry.name: entry.sha256 for entry in manifest.require(config.output, "pack").files["shards"]}


def ledger_keys(config: MillConfig) -> list[str]:
    """The keys of all readable rows, duplicates included."""
    return [row.key for row in read_ledger(config.ledger_url, columns=("key",))]


def repeated(config: MillConfig) -> int:
    """How many generations are in the ledger more than once."""
    return sum(count - 1 for count in Counter(ledger_keys(config)).values())


def run_here(config: MillConfig, stages: tuple[str, ...] = manifest.STAGES) -> dict[str, float]:
    """Run stages in this process; the seconds each took."""
    from pipelines.run import mill

    elapsed_s = {}
    for stage in stages:
        began = time.monotonic()
        mill(config, stages=[stage])
        elapsed_s[stage] = time.monotonic() - began
    return elapsed_s


def _child(tree: dict[str, Any], stages: tuple[str, ...], replace: bool, said: Any) -> None:
    import logging

    from pipelines.config import from_mapping
    from pipelines.run import mill
    from sharding.errors import MillError

    logging.disable(logging.ERROR)
    try:
        mill(from_mapping(tree), stages=stages, replace=replace)
        said.send("done")
    except MillError as error:
        said.send(f"{type(error).__name__}: {error}")


class Child:
    """A run in a process of its own."""

    def __init__(
        self, tree: dict[str, Any], stages: tuple[str, ...] = manifest.STAGES, *, replace: bool = False
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(
            ["apache_beam", "pipelines.score", "pipelines.augment", "pipelines.select", "pipelines.pack"]
        )
        self._reader, writer = context.Pipe(duplex=False)
        self.process: BaseProcess = context.Process(target=_child, args=(tree, stages, replace, writer))
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
