"""A runner that computes everything more than once, as Spark does where a partition wasn't kept or was lost.

    python -m pipelines.tools.conformance --runner=pipelines.tools.computing_twice.ComputingTwiceRunner

Spark computes a fused step again for each of its outputs that somebody reads, unless it has cached what the step gave;
and any step again whose cached partition is gone. So each output may come of another computation, and none but the last
is kept. A step has to give the same every time, and must not buy anything a second time. This is Beam's local runner
with that habit, to test with: in one process, with Beam's own shuffles.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.portability.fn_api_runner.execution import ListBuffer
from apache_beam.runners.portability.fn_api_runner.fn_runner import BundleManager


class ComputingTwiceRunner(FnApiRunner):
    """Runs each bundle once for each output of its step, and twice where the step has one output or none.

    The outputs are gone through in the order of their names; `LastOutputFirstRunner` goes the other way.
    """

    last_first = False

    def _get_bundle_manager(self, bundle_context_manager: Any) -> BundleManager:
        manager = _RepeatingBundleManager(
            bundle_context_manager,
            self._progress_frequency,
            cache_token_generator=FnApiRunner.get_cache_token_generator(static=False),
        )
        manager.last_first = self.last_first
        return manager


class LastOutputFirstRunner(ComputingTwiceRunner):
    """The same with the outputs in the opposite order: what one kept of the first computation, the other keeps of a
    later one."""

    last_first = True


class _RepeatingBundleManager(BundleManager):
    last_first = False

    def process_bundle(
        self,
        inputs: Mapping[str, Any],
        expected_outputs: Mapping[str, Any],
        fired_timers: Mapping[Any, Any],
        expected_output_timers: Mapping[Any, Any],
        dry_run: bool = False,
    ) -> Any:
        every: Any = self.bundle_context_manager
        kept: list[str | None] = [*sorted(expected_outputs, reverse=self.last_first)]
        if len(kept) < 2:
            kept = [None, *(kept or [None])]  # nothing is kept of the first
        result: Any = None
        try:
            for output in kept:
                self.bundle_context_manager: Any = _KeepsOne(every, output)
                result = super().process_bundle(inputs, expected_outputs, fired_timers, expected_output_timers, dry_run)
        finally:
            self.bundle_context_manager = every
        return result


class _KeepsOne:
    """A step's context of which one output is kept."""

    def __init__(self, context: Any, output: str | None) -> None:
        self._context, self._output = context, output

    def get_buffer(self, buffer_id: Any, transform_id: str) -> Any:
        kept = transform_id == self._output
        return self._context.get_buffer(buffer_id, transform_id) if kept else ListBuffer(None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)
