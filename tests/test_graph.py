"""The job as a runner sees it: each model's branch carries its accelerator, and nothing else does."""

from collections.abc import Callable
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.portability import common_urns

from pipelines.augment import Augment
from pipelines.run import mill
from pipelines.yaml_config import from_mapping

TIERS = [
    {"name": "skip"},
    {"name": "brief", "model": "small", "prompt": "brief", "max_tokens": 48},
    {"name": "deep", "model": "large", "prompt": "expert", "max_tokens": 128, "samples": 2},
]


def test_each_models_branch_carries_its_accelerator(
    write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]]
) -> None:
    source = write_jsonl([{"id": str(i), "text": f"text {i} " * 50} for i in range(6)])
    hints = {"small": "type:nvidia-l4;count:1", "large": "type:nvidia-h100-80gb;count:2"}
    config = from_mapping(
        rehearsal_config(
            source,
            models={name: {"engine": "rehearsal", "name": name, "accelerator": hint} for name, hint in hints.items()},
            budget={"thinking_tokens_per_source_token": 0.3, "tiers": TIERS},
        )
    )
    mill(config, stages=["score"])
    pipeline = beam.Pipeline()
    Augment(config).assemble(pipeline, "memory://graph/outcome")
    proto = pipeline.to_runner_api()
    urn = common_urns.resource_hints.ACCELERATOR.urn
    environments = proto.components.environments
    found = {
        transform.unique_name: environments[transform.environment_id].resource_hints[urn].decode()
        for transform in proto.components.transforms.values()
        if transform.environment_id and urn in environments[transform.environment_id].resource_hints
    }
    assert set(found.values()) == set(hints.values())
    for name, hint in found.items():
        model = next(model for model, wanted in hints.items() if wanted == hint)
        assert f"Generate with {model}" in name


@pytest.mark.slow
def test_two_models_run_in_one_job(
    write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]]
) -> None:
    source = write_jsonl([{"id": str(i), "text": f"text {i} and {i * 7} " * (20 + i)} for i in range(10)])
    config = from_mapping(
        rehearsal_config(
            source,
            models={name: {"engine": "rehearsal", "name": name} for name in ("small", "large")},
            budget={"thinking_tokens_per_source_token": 0.5, "tiers": TIERS},
        )
    )
    done = mill(config)
    counts = done["augment"].counts
    assert counts["tier.brief.requests"] > 0 and counts["tier.deep.requests"] > 0
    assert counts["generated"] == counts["generations"] == done["select"].counts["candidates"]
