"""The worker processes of Beam's local runner: one that is killed is told. Beam itself would wait for it without end.

The system kills a process where memory runs out. The thread of Beam's that minds it ends with an error then, which
nobody hears, and the pipeline goes on waiting. So a pipeline with worker processes runs on a thread of its own here,
and whichever comes first, its end or such an error, is what came of it. Used by `pipelines.running`.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, StandardOptions

from sharding.errors import MillError
from sharding.memory_kills import kills_for_memory

_KILLED = re.compile(r"return code (?:137|-9)\b")
_MINDER = "run_worker"
"""Beam's name for the threads that mind worker processes."""


def has_processes(pipeline: beam.Pipeline) -> bool:
    """Whether a pipeline's workers will be processes of this machine that Beam's local runner starts."""
    runner = pipeline.options.view_as(StandardOptions).runner or ""
    return runner.endswith("FnApiRunner") and pipeline.options.view_as(DirectOptions).direct_running_mode == (
        "multi_processing"
    )


def run_with_processes(pipeline: beam.Pipeline) -> Any:
    """Run a pipeline to its end; its state.

    Raises:
        MillError: a worker process was killed, or ended by itself.
        Exception: whatever the pipeline raised.
    """
    ended: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def run() -> None:
        try:
            ended.put((pipeline.run().wait_until_finish(), None))
        except BaseException as error:  # noqa: BLE001 - raised below, on the thread that waits
            ended.put((None, error))

    def heard(failed: threading.ExceptHookArgs) -> None:
        if failed.thread is not None and failed.thread.name == _MINDER:
            ended.put((None, _told(str(failed.exc_value), kills_for_memory() > kills)))
        else:
            before(failed)

    kills, before, threading.excepthook = kills_for_memory(), threading.excepthook, heard
    try:
        threading.Thread(target=run, name="thoughtmill-pipeline", daemon=True).start()
        state, error = ended.get()
        if error is not None:
            _end_workers()  # Beam waits for the others, also when this process ends
            raise error
        return state
    finally:
        threading.excepthook = before


def _told(said: str, for_memory: bool) -> MillError:
    if _KILLED.search(said) is None:
        return MillError(f"a worker process ended by itself ({said}): its last words are above; run again")
    why = "because memory ran out" if for_memory else "as the system does when memory runs out"
    return MillError(
        f"a worker process was killed, {why}: lower --direct_num_workers (each worker holds a model and a partition), "
        "difficulty.batch_tokens or source.max_document_bytes, or take a machine with more memory, and run again; what "
        "was generated is in the ledger"
    )


def _end_workers() -> None:
    """Kill the worker processes that this one has started, on systems that tell which they are."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # it has just ended
            parents[int(path.parent.name)] = int(path.read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    for pid in parents:
        above = parents[pid]
        while above in parents and above != os.getpid():
            above = parents[above]
        with contextlib.suppress(OSError):
            if above == os.getpid() and b"sdk_worker_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
