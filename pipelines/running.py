"""Running a Beam pipeline to its end: what went wrong in a worker, wherever it was, is one error of ours again."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.runners.runner import PipelineState

from pipelines import runner_faults
from pipelines.local_workers import has_processes, run_locally
from sharding.errors import MillError, restated

PACKAGES = ("pipelines", "augment", "difficulty", "sharding")

WORKER_ERROR = re.compile(r"^(?P<kind>[\w.]+): (?P<message>.+)$", re.MULTILINE)
"""How an error looks in the traceback that a remote worker sends back as text."""

WHILE_RUNNING = re.compile(r" \[while running '(?P<step>.*)'\]$", re.DOTALL)
"""What Beam appends to the message of an exception."""


def run_pipeline(pipeline: beam.Pipeline, name: str) -> None:
    """Run a pipeline to its end; a failure becomes an error of ours that names the step.

    Raises:
        MillError: a step failed.
        RequestError: a step found that the request was wrong.
    """
    runner, here = runner_faults.runner_name(pipeline.options), runner_faults.is_in_process(pipeline.options)
    runner_faults.without_proxy()
    try:
        if has_processes(pipeline.options) if here else runner_faults.uses_loopback(pipeline.options):
            runner_faults.check_loopback()
        state = run_locally(pipeline) if here else _run_elsewhere(pipeline, runner)
    except MillError as error:
        raise _located(error, name) from error
    except Exception as error:  # every runner has a class of its own for what a worker sends back as text
        found = told_by_worker(str(error)) or (None if here else runner_faults.told(error, runner))
        if found is None:
            raise
        raise _located(found, name) from error
    if state not in (None, PipelineState.DONE):
        raise MillError(f"{name}: the runner ended with {state}: see its log")


def _run_elsewhere(pipeline: beam.Pipeline, runner: str) -> Any:
    """Run a pipeline on another runner to its end; its state. One that is stopped takes its job along.

    What the job would make is published by nobody.
    """
    runner_faults.check_answers(pipeline.options)
    result = pipeline.run()
    try:
        return runner_faults.wait_watched(result, runner)
    except Exception:
        raise
    except BaseException:
        runner_faults.cancel(result)
        raise


def told_by_worker(text: str) -> MillError | None:
    """The last error of ours in a traceback: a wrong request or else a failure; None where none is in it."""
    for found in reversed(list(WORKER_ERROR.finditer(text))):
        if (kind := _kind(found["kind"])) is not None:
            return restated(kind, found["message"])
    return None


def _kind(name: str) -> type[MillError] | None:
    """The error class of ours with this name, as a traceback spells it; None where it is no name of one."""
    module, _, bare = name.rpartition(".")
    if module.partition(".")[0] in PACKAGES:
        try:
            importlib.import_module(module)  # only the worker may have needed it
        except ImportError:
            return None
    kinds = {kind.__name__: kind for kind in _family(MillError)}
    return kinds.get(bare)


def _family(kind: type[MillError]) -> Iterator[type[MillError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _family(child)


def _located(error: MillError, stage: str) -> MillError:
    message = str(error)
    step = WHILE_RUNNING.search(message)
    where = f"{stage} ({step['step']})" if step else stage
    return restated(error, f"{where}: {WHILE_RUNNING.sub('', message)}")
