"""How many worker processes a stage has on Beam's local runner, where Beam's own options don't say.

    work of the stage in seconds ─► a process for every `WORTH_S` of it ─► no more than cores and memory allow

The first pipeline of a run waits `START_S` for its processes, later ones hardly (`pipelines.worker_server`): a small
job is done by then in this one. A stage whose workers load a model has one process unless told otherwise: torch uses
all cores by itself, and an accelerator has no room for the same model twice. Engines that generate are no such models:
processes share them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions

from difficulty.config import SCORERS, DifficultyConfig
from pipelines import runner_faults
from pipelines.config import Workers
from sharding.errors import RequestError

START_S = 1.5
"""Until the first processes of a run are at work: measured on two cores (docs/benchmarks.md, cores)."""

WORTH_S = 4 * START_S
"""Seconds of work that a process is started for."""

WORKER_BYTES = 1 << 30
"""Memory for one: the largest that was measured took half of it (docs/benchmarks.md, milling)."""

COUNTING_BYTES = 64
"""More for each n-gram that a memory may hold: each process counts by itself. Two processes had 1.03 GB at most where
2^24 are held (docs/benchmarks.md, milling)."""

_OWN = "--direct_"
"""Begins Beam's options for the same."""


def parse(text: str) -> Workers:
    """What `--workers` says.

    Raises:
        RequestError: it is neither auto nor a number above 0.
    """
    if text == "auto":
        return "auto"
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise RequestError(f"--workers: {text!r} is neither auto nor a number of processes above 0")


def check(workers: Workers, options: PipelineOptions, beam_args: Sequence[str]) -> None:
    """See that what the command line says of workers has somebody to heed it.

    Raises:
        RequestError: Beam's options say another number, or name another runner than the local one.
    """
    if said := _said(beam_args):
        raise RequestError(f"--workers={workers}: {said} says how many already; leave out one of the two")
    if not runner_faults.is_in_process(options):
        name = runner_faults.runner_name(options)
        raise RequestError(f"--workers={workers}: it is for Beam's local runner; {name} has options of its own")


def set_workers(
    options: PipelineOptions,
    beam_args: Sequence[str],
    workers: Workers,
    *,
    work_s: float,
    loads_model: bool,
    worker_bytes: int = WORKER_BYTES,
) -> None:
    """Have Beam's local runner start as many worker processes as wanted; other runners and own options stay.

    Args:
        options: of the pipeline; changed.
        beam_args: what they were made from.
        workers: as the config or the command line says.
        work_s: seconds that one core has to do.
        loads_model: whether a worker loads a model.
        worker_bytes: memory that one more process takes.
    """
    if _said(beam_args) or not runner_faults.is_in_process(options):
        return
    number = _worthwhile(work_s, loads_model, worker_bytes) if workers == "auto" else workers
    if number > 1:
        direct = options.view_as(DirectOptions)
        direct.direct_num_workers, direct.direct_running_mode = number, "multi_processing"


def loads_model(difficulty: DifficultyConfig) -> bool:
    """Whether a worker that asks the scorer has its model in its own memory."""
    kind = SCORERS[difficulty.scorer]
    return kind.needs_model and not kind.asks_servers


def bytes_to_score(difficulty: DifficultyConfig) -> int:
    """Memory that one more process of the score stage takes."""
    return WORKER_BYTES + (COUNTING_BYTES * difficulty.memory.max_ngrams if difficulty.memory is not None else 0)


def cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _worthwhile(work_s: float, loads_model: bool, worker_bytes: int) -> int:
    if loads_model or work_s < 2 * WORTH_S:
        return 1
    number = min(cores(), int(work_s // WORTH_S))
    free_bytes = available_bytes()
    return number if free_bytes is None else max(1, min(number, free_bytes // worker_bytes))


def available_bytes(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Memory that processes may still take, as the kernel has it; None of a system that doesn't say."""
    try:
        found = re.search(r"^MemAvailable: +(\d+) kB$", meminfo.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _said(beam_args: Sequence[str]) -> str:
    """Beam's own word on the matter, if there is one."""
    return next((word for word in beam_args if word.startswith(_OWN)), "")
