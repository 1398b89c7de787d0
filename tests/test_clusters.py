"""Clusters' rules, kept without a cluster: steps computed again give the same bytes, and nothing is bought twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest

from augment.engines.protocol import Generation, GenerationRequest
from augment.engines.rehearsal import RehearsalEngine
from pipelines.config import MillConfig
from pipelines.run import mill
from pipelines.tools import conformance
from pipelines.tools.computing_twice import ComputingTwiceRunner, LastOutputFirstRunner
from pipelines.yaml_config import from_mapping, to_mapping
from sharding.storage.manifest import Manifest

RUNNERS = {
    "first output first": ["--runner=pipelines.tools.computing_twice.ComputingTwiceRunner"],
    "last output first": ["--runner=pipelines.tools.computing_twice.LastOutputFirstRunner"],
}
RECIPE = {"name": "refined", "model": "large", "prompt": "expert", "max_tokens": 200, "recipe": "refine"}


COMPUTED: list[int] = []
KEPT: dict[str, list[int]] = {}


class _BothFn(beam.DoFn):
    """Numbers its computations, on both its outputs."""

    def process(self, element: int) -> Any:
        COMPUTED.append(element)
        yield len(COMPUTED)
        yield beam.pvalue.TaggedOutput("beside", len(COMPUTED))


def _keep(number: int, name: str) -> None:
    KEPT[name].append(number)


@pytest.mark.parametrize("runner", [ComputingTwiceRunner, LastOutputFirstRunner])
def test_every_output_is_of_another_computation(runner: type[ComputingTwiceRunner]) -> None:
    """The runner does what it is for: a step that isn't the same every time is found out."""
    COMPUTED.clear()
    KEPT.update(main=[], beside=[])
    with beam.Pipeline(runner=runner()) as pipeline:
        source = pipeline | beam.Create([0], reshuffle=False) | "Before" >> beam.Reshuffle()
        outputs = source | beam.ParDo(_BothFn()).with_outputs("beside", main="main")
        for name in KEPT:
            apart = outputs[name] | f"Apart {name}" >> beam.Reshuffle()
            apart | f"Keep {name}" >> beam.Map(_keep, name)
    assert len(COMPUTED) == 2
    assert sorted(KEPT.values()) == [[1, 1], [2, 2]]  # a step that has no output is computed twice as well


def job(root: Path, output: str, tokenizer: str) -> MillConfig:
    """The fixed job, with all that buys: several samples, a recipe, a judge; and with all that goes by side inputs."""
    tree = to_mapping(conformance.job_config(str(root), str(root / output), tokenizer))
    tree["budget"]["tiers"].append(RECIPE)
    judge = {"model": "small", "max_tokens": 32}
    tree["select"] |= {"value": "gain_and_judge", "judge": judge, "repeats": {}, "shuffle": True}
    return from_mapping(tree)


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[dict[str, str], Counter[str], dict[str, Manifest]]]:
    """Of each runner: the hashes of its files, how often each request was asked for, and its manifests."""
    root, asked = tmp_path_factory.mktemp("twice"), Counter[str]()
    generate = RehearsalEngine.generate

    async def counted(engine: RehearsalEngine, request: GenerationRequest) -> Generation:
        asked[f"{request.key}/{request.seed}"] += 1
        return await generate(engine, request)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(RehearsalEngine, "generate", counted)
        patched.setattr(conformance, "NUM_DOCUMENTS", 4)
        tokenizer = conformance.write_job(str(root), None)
        made = {}
        every: dict[str, Sequence[str]] = {"once": [], **RUNNERS}
        for number, (name, arguments) in enumerate(every.items()):
            asked.clear()
            config = job(root, f"out-{number}", tokenizer)
            manifests = mill(config, beam_args=arguments)
            made[name] = conformance.fingerprints(config), Counter(asked), manifests
    return made


@pytest.mark.slow
@pytest.mark.parametrize("runner", RUNNERS)
def test_the_same_bytes_and_nothing_bought_twice(runs: dict[str, Any], runner: str) -> None:
    (expected, _, _), (found, asked, _) = runs["once"], runs[runner]
    assert found == expected and {name.partition("/")[0] for name in found} == {"score", "augment", "select", "pack"}
    assert set(asked.values()) == {1} and asked == runs["once"][1]


@pytest.mark.slow
@pytest.mark.parametrize("runner", RUNNERS)
def test_the_counts_are_those_of_a_run_that_computes_once(runs: dict[str, Any], runner: str) -> None:
    """But for what a judge's verdicts cost, of which a step that is computed again finds all that it bought."""
    for stage, once in runs["once"][2].items():
        counts, expected = dict(runs[runner][2][stage].counts), dict(once.counts)
        of_judge = [each.pop("judge_tokens_now", 0) + each.pop("judge_tokens_found", 0) for each in (counts, expected)]
        assert counts == expected and of_judge[0] == of_judge[1], stage
        assert json.dumps(runs[runner][2][stage].facts, sort_keys=True, default=str).count("nan") == 0
    augmented = runs["once"][2]["augment"].counts
    assert augmented["tier.refined.requests"] and augmented["generated"] and runs["once"][2]["select"].counts["judged"]
