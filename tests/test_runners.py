"""The documented options are options, and the job for Dataflow asks for accelerators and image where it should."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, WorkerOptions
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.transforms import environments

from pipelines import run as run_module
from pipelines.beam_options import beam_options
from pipelines.config import MillConfig
from pipelines.stage import Stage
from pipelines.yaml_config import from_mapping
from sharding.storage.manifest import STAGES

PAGE = Path(__file__).parent.parent / "docs" / "runners.md"
COMMAND = re.compile(r"```text\nthoughtmill run mill\.yaml -- (.*?)```", re.DOTALL)
COMMANDS = [shlex.split(found.replace("\\\n", " ")) for found in COMMAND.findall(PAGE.read_text())]
IN_CONFIG = re.compile(r"^#   thoughtmill run mill\.yaml -- ((?:.*\\\n#)*.*)$", re.MULTILINE)
EXAMPLES = {
    path.name: shlex.split(found.replace("\\\n#", " "))
    for path in sorted((PAGE.parent.parent / "configs").glob("*.yaml"))
    for found in IN_CONFIG.findall(path.read_text())
}
ACCELERATOR = common_urns.resource_hints.ACCELERATOR.urn
HINTS = {
    "small": "type:nvidia-l4;count:1;machine_type:g2-standard-8;install-nvidia-driver",
    "large": "type:nvidia-h100-80gb;count:2",
}


@pytest.mark.parametrize("options", COMMANDS, ids=lambda options: options[0])
def test_beam_knows_every_option(options: list[str]) -> None:
    beam_options(options)


@pytest.mark.parametrize("options", EXAMPLES.values(), ids=EXAMPLES)
def test_the_commands_in_the_examples_are_those_of_the_page(options: list[str]) -> None:
    """By their options: values differ, and the page has more."""
    [whole] = [command for command in COMMANDS if options[0] in command]
    names = [{word.partition("=")[0] for word in command} for command in (options, whole)]
    assert names[0] <= names[1]
    beam_options(options)


def test_there_are_such_examples() -> None:
    assert {"dataflow.yaml", "spark.yaml"} <= set(EXAMPLES)


@pytest.mark.parametrize("options", COMMANDS, ids=lambda options: options[0])
def test_every_option_is_explained(options: list[str]) -> None:
    explained = set(re.findall(r"^\| `--(\w+)", PAGE.read_text(), re.MULTILINE))
    assert {word.removeprefix("--").partition("=")[0] for word in options} <= explained


def test_all_runners_are_there() -> None:
    assert len(COMMANDS) >= 6
    for runner in ("PrismRunner", "FlinkRunner", "SparkRunner", "DataflowRunner", "PortableRunner"):
        assert any(f"--runner={runner}" in options for options in COMMANDS), runner


@pytest.fixture
def graphs(
    write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> dict[str, beam_runner_api_pb2.Pipeline]:
    """Stage → its job as Dataflow gets it, with the options of the documented command; run here, stage by stage."""
    [options] = [options for options in COMMANDS if "--runner=DataflowRunner" in options]
    parsed = beam_options(options)
    image = parsed.view_as(WorkerOptions).sdk_container_image
    assert parsed.view_as(GoogleCloudOptions).project and image
    built: dict[str, beam_runner_api_pb2.Pipeline] = {}
    whole = Stage.run

    def capture(stage: Stage, **keys: Any) -> Any:
        # Without the runner's own class, which needs Google's client: the graph doesn't depend on it.
        pipeline = beam.Pipeline(runner="FnApiRunner", options=PipelineOptions([]))
        stage.assemble(pipeline, "memory://graph/outcome")
        environment = environments.DockerEnvironment.from_container_image(image)
        built[stage.name] = pipeline.to_runner_api(default_environment=environment)
        return whole(stage, **keys)

    monkeypatch.setattr(Stage, "run", capture)
    source = write_jsonl([{"id": str(i), "text": f"text {i} " * 50} for i in range(6)])
    config: MillConfig = from_mapping(
        rehearsal_config(
            source,
            models={name: {"engine": "rehearsal", "name": name, "accelerator": hint} for name, hint in HINTS.items()},
            budget={
                "thinking_tokens_per_source_token": 0.3,
                "tiers": [
                    {"name": "skip"},
                    {"name": "brief", "model": "small", "prompt": "brief", "max_tokens": 48},
                    {"name": "deep", "model": "large", "prompt": "expert", "max_tokens": 128, "samples": 2},
                ],
            },
        )
    )
    run_module.mill(config)
    return built


def hints_of(graph: beam_runner_api_pb2.Pipeline) -> dict[str, str]:
    """Name of a step → its accelerator."""
    found = {}
    for transform in graph.components.transforms.values():
        if transform.environment_id:
            hints = graph.components.environments[transform.environment_id].resource_hints
            if ACCELERATOR in hints:
                found[transform.unique_name] = hints[ACCELERATOR].decode()
    return found


@pytest.mark.slow
def test_the_job_for_dataflow(graphs: dict[str, beam_runner_api_pb2.Pipeline]) -> None:
    assert set(graphs) == set(STAGES)
    # Generation alone runs on accelerators, each model on its own.
    hints = hints_of(graphs["augment"])
    for model, hint in HINTS.items():
        steps = [name for name, found in hints.items() if found == hint]
        assert steps and all(f"Generate with {model}" in step for step in steps)
    assert set(hints.values()) == set(HINTS.values())
    for stage in ("score", "select", "pack"):
        assert hints_of(graphs[stage]) == {}, stage
    for stage, graph in graphs.items():
        environments_here = graph.components.environments.values()
        assert {e.urn for e in environments_here} == {common_urns.environments.DOCKER.urn}
        images = {
            beam_runner_api_pb2.DockerPayload.FromString(environment.payload).container_image
            for environment in environments_here
        }
        assert images == {"europe-docker.pkg.dev/PROJECT/mill/thoughtmill-gpu:0.1.0"}, stage


@pytest.mark.slow
def test_nothing_that_only_one_runner_can_do(graphs: dict[str, beam_runner_api_pb2.Pipeline]) -> None:
    """No state, timers, splittable reads of our own, streams or transforms in other languages."""
    for stage, graph in graphs.items():
        assert not [r for r in graph.requirements if "stateful" in r or "timer" in r or "stable_input" in r], stage
        for transform in graph.components.transforms.values():
            if transform.spec.urn == common_urns.primitives.PAR_DO.urn:
                payload = beam_runner_api_pb2.ParDoPayload.FromString(transform.spec.payload)
                assert not payload.state_specs and not payload.timer_family_specs, transform.unique_name
        bounded = {collection.is_bounded for collection in graph.components.pcollections.values()}
        assert bounded == {beam_runner_api_pb2.IsBounded.BOUNDED}, stage
