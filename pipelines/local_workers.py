"""Beam's local runner: a worker process that is killed is told, and Ctrl-C is this process's alone.

The system kills a process where memory runs out. The thread of Beam's that minds it ends with an error then, which
nobody hears, and the pipeline goes on waiting. So a pipeline runs on a thread of its own here, and whichever comes
first, its end or such an error, is what came of it.

A terminal sends Ctrl-C to every process that it started, and each would answer with a traceback. That thread blocks the
signal, and so do the threads and engines that come from it; worker processes ignore it. The main thread alone hears it,
and ends them. Used by `pipelines.running`.
"""

from __future__ import annotations

import logging
import re
import signal
import threading
from queue import SimpleQueue
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions

from pipelines.runner_faults import is_in_process
from pipelines.stopping import end_workers, let_workers_end, on_notice
from pipelines.worker_server import forked_workers
from sharding.errors import MillError
from sharding.memory_kills import kills_for_memory

_KILLED = re.compile(r"return code (?:137|-9)\b")
_MINDER = "run_worker"
"""Beam's name for the threads that mind worker processes."""

_HEARD_BY_MAIN = {signal.SIGINT, signal.SIGHUP}
"""Not SIGTERM, by which engines are told to end."""


def has_processes(options: PipelineOptions) -> bool:
    """Whether a pipeline's workers will be processes of this machine that Beam's local runner starts."""
    mode = options.view_as(DirectOptions).direct_running_mode
    return is_in_process(options) and mode == "multi_processing"


def run_locally(pipeline: beam.Pipeline) -> Any:
    """Run a pipeline to its end; its state.

    Raises:
        MillError: a worker process was killed, or ended by itself.
        Exception: whatever the pipeline raised.
    """
    ended: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def run() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD_BY_MAIN)
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
        with forked_workers(quiet=not logging.getLogger().isEnabledFor(logging.INFO)):
            threading.Thread(target=run, name="thoughtmill-pipeline", daemon=True).start()
            state, error = ended.get()
        if error is not None:
            raise error
        return state
    except BaseException:
        if has_processes(pipeline.options):
            if on_notice():
                let_workers_end()
            end_workers()  # Beam waits for the others, also when this process ends
        raise
    finally:
        threading.excepthook = before


def _told(said: str, for_memory: bool) -> MillError:
    if _KILLED.search(said) is None:
        return MillError(f"a worker process ended by itself ({said}): its last words are above; run again")
    why = "because memory ran out" if for_memory else "as the system does when memory runs out"
    return MillError(
        f"a worker process was killed, {why}: lower workers, or --direct_num_workers (each holds a model and a "
        "partition), difficulty.batch_tokens or source.max_document_bytes, or take a machine with more memory, and run "
        "again; what was generated is in the ledger"
    )
