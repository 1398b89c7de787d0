"""Beam's local runner with other partitions: steps get their input in several, shuffles come the other way round."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from apache_beam.metrics import monitoring_infos
from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.portability.fn_api_runner.execution import GroupingBuffer
from apache_beam.runners.portability.fn_api_runner.fn_runner import BundleManager

PARTITIONS = 3


class ReorderingRunner(FnApiRunner):
    """Hands every step its input in so many bundles, the last ones first, and of each shuffle the last keys and values
    first. One after the other, in this process; its shuffles are Beam's own, as on a cluster."""

    def _get_bundle_manager(self, bundle_context_manager: Any) -> BundleManager:
        return _ReorderingBundleManager(
            bundle_context_manager,
            self._progress_frequency,
            cache_token_generator=FnApiRunner.get_cache_token_generator(static=False),
        )


class _ReorderingBundleManager(BundleManager):
    def process_bundle(
        self,
        inputs: Mapping[str, Any],
        expected_outputs: Mapping[str, Any],
        fired_timers: Mapping[Any, Any],
        expected_output_timers: Mapping[Any, Any],
        dry_run: bool = False,
    ) -> Any:
        for buffer in inputs.values():
            if isinstance(buffer, GroupingBuffer):
                turned = {key: values[::-1] for key, values in reversed(buffer._table.items())}
                buffer._table.clear()
                buffer._table.update(turned)
        parts = {name: buffer.partition(PARTITIONS) for name, buffer in inputs.items()}
        infos, splits, error = [], [], ""
        for number in reversed(range(PARTITIONS)):
            manager = BundleManager(
                self.bundle_context_manager,
                self._progress_frequency,
                cache_token_generator=self._cache_token_generator,
            )
            part = {name: of[number] for name, of in parts.items()}
            timers = {} if number else fired_timers
            found, more = manager.process_bundle(part, expected_outputs, timers, expected_output_timers, dry_run)
            infos.append(found.process_bundle.monitoring_infos)
            splits += more
            error = error or found.error
        merged = monitoring_infos.consolidate(itertools.chain(*infos))
        response = beam_fn_api_pb2.ProcessBundleResponse(monitoring_infos=merged)
        return beam_fn_api_pb2.InstructionResponse(process_bundle=response, error=error), splits
