"""Beam's local runner, which notes what the largest key of every shuffle holds and how large every side input is."""

from __future__ import annotations

from typing import Any

from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.portability.fn_api_runner.execution import GroupingBuffer

LARGEST_KEYS: dict[str, int] = {}
"""Stage and step → bytes of the values of its largest key, as they travel."""

SIDE_INPUTS: dict[str, int] = {}
"""Stage and step that reads it → bytes."""


class MeasuringRunner(FnApiRunner):
    """Adds to the two tables; its shuffles are Beam's own, as on a cluster."""

    def _execute_bundle(self, context: Any, step: Any, bundle_input: Any) -> Any:
        transforms = context.pipeline_components.transforms
        for reader, buffer in bundle_input.data.items():
            if isinstance(buffer, GroupingBuffer):
                (grouped,) = step.process_bundle_descriptor.transforms[reader].outputs.values()
                names = [each.unique_name for each in transforms.values() if grouped in each.outputs.values()]
                name = max(names, key=len)  # of the shuffle itself, not of what it is within
                if "ReshufflePerKey" not in name:  # whose keys are drawn, so that none is large
                    size = max((sum(map(len, values)) for values in buffer._table.values()), default=0)
                    LARGEST_KEYS[name] = max(size, LARGEST_KEYS.get(name, 0))

        def commit(sides: Any) -> None:
            for (reader, tag), (buffer_id, _) in sides.items():
                size = sum(map(len, context.pcoll_buffers.get(buffer_id, ())))
                name = f"{reader} {tag}"
                SIDE_INPUTS[name] = max(size, SIDE_INPUTS.get(name, 0))
            put_down(sides)

        put_down, context.commit_side_inputs_to_state = context.commit_side_inputs_to_state, commit
        try:
            return super()._execute_bundle(context, step, bundle_input)
        finally:
            context.commit_side_inputs_to_state = put_down
