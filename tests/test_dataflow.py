"""The job of each stage as Dataflow would get it: accelerators, image, size; and workers that have the wheel alone.

Dataflow itself is not run. Its workers get a graph, unpickle what is in it, and start by `sdk_worker_main`: both is
done here in an environment that has the wheel, and from which nothing leads to the checkout.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, WorkerOptions
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms import environments
from google.protobuf import json_format

from augment.ledger.transforms import ReadLedger
from pipelines import run as run_module
from pipelines.beam_options import beam_options
from pipelines.config import MillConfig
from pipelines.outcome import Outcome, take_outcome
from pipelines.stage import Stage
from pipelines.tools import conformance
from pipelines.yaml_config import from_mapping, to_mapping
from sharding.beam.joins import JoinParts
from sharding.beam.part_join import Parts
from sharding.beam.part_names import part_name
from sharding.hashing import fingerprint
from sharding.records.families import SEGMENTS
from sharding.storage.manifest import STAGES, Manifest
from tests.clean_install import TOPS, run
from tests.test_runners import COMMANDS

ACCELERATOR = common_urns.resource_hints.ACCELERATOR.urn
HINTS = {
    "small": "type:nvidia-l4;count:1;machine_type:g2-standard-8;install-nvidia-driver",
    "large": "type:nvidia-h100-80gb;count:2",
}

GRAPH_BYTES = 10_000_000
"""Of a job's graph in JSON, Dataflow takes so much."""

BYTES_OF_STEPS = 500_000
"""What the steps of a stage take of it at most, whatever the corpus."""

BYTES_OF_A_PART = {"a part of a stage": 12, "a part of the ledger": 48}
"""What grows with the corpus: names of files, compressed."""

CLEAN = ("score", "augment")
"""Stages that are run by workers with the wheel alone."""

MODULES = f"""
import json, sys
def modules():
    tops = {TOPS!r}
    return {{
        "ours": {{name: sys.modules[name].__file__ for name in tops if name in sys.modules}},
        "strange": [name for name in sys.modules if name.partition(".")[0] in ("tests", "benchmarks", "conftest")],
    }}
"""

UNPICKLE = (
    MODULES
    + """
from apache_beam.internal import pickler
from apache_beam.portability import common_urns, python_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.pipeline_context import PipelineContext
from apache_beam.transforms.core import CombineFn

combines = {
    value.urn
    for of in (common_urns.composites, common_urns.combine_components)
    for name, value in vars(of).items()
    if name.startswith("COMBINE")
}
loaded = {"steps": 0, "side inputs": 0, "combines": 0, "coders": 0, "windows": 0}
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        components = beam_runner_api_pb2.Pipeline.FromString(file.read()).components
    context = PipelineContext(components)
    for name in components.coders:
        context.coders.get_by_id(name)
        loaded["coders"] += 1
    for name in components.windowing_strategies:
        context.windowing_strategies.get_by_id(name)
        loaded["windows"] += 1
    for step in components.transforms.values():
        if step.spec.urn == common_urns.primitives.PAR_DO.urn:
            payload = beam_runner_api_pb2.ParDoPayload.FromString(step.spec.payload)
            if payload.do_fn.urn == python_urns.PICKLED_DOFN_INFO:
                pickler.loads(payload.do_fn.payload)
            else:  # one of Beam's own, without anything in it
                assert payload.do_fn.urn == python_urns.KEY_WITH_NONE_DOFN, payload.do_fn.urn
            loaded["steps"] += 1
            for side in payload.side_inputs.values():
                pickler.loads(side.view_fn.payload)
                pickler.loads(side.window_mapping_fn.payload)
                loaded["side inputs"] += 1
        elif step.spec.urn in combines:
            payload = beam_runner_api_pb2.CombinePayload.FromString(step.spec.payload)
            CombineFn.from_runner_api(payload.combine_fn, context)
            loaded["combines"] += 1
print(json.dumps({"loaded": loaded, **modules()}))
"""
)

WORKER = (
    MODULES
    + """
import os
from apache_beam.runners.worker import sdk_worker_main
sdk_worker_main.main(sys.argv)
with open(f"modules-{os.getpid()}.json", "w", encoding="utf-8") as file:
    json.dump(modules(), file)
"""
)


@dataclass(frozen=True)
class Jobs:
    """What came of the four stages.

    Attributes:
        graphs: stage → its job as Dataflow gets it.
        outcomes: stage → what workers with the wheel alone made of it.
        made: stage → its manifest, made in this process.
        folder: where those workers ran.
    """

    graphs: dict[str, beam_runner_api_pb2.Pipeline]
    outcomes: dict[str, Outcome]
    made: dict[str, Manifest]
    folder: Path


def job(root: Path, tokenizer: str) -> MillConfig:
    """The fixed job, with near-copies, a memory, contractions, two models, a recipe and a judge."""
    tree = to_mapping(conformance.job_config(str(root), str(root / "out"), tokenizer))
    for name, hint in HINTS.items():
        tree["models"][name]["accelerator"] = hint
    recipe = {"name": "refined", "model": "large", "prompt": "expert", "max_tokens": 200, "recipe": "refine"}
    tree["budget"]["tiers"].append(recipe)
    judge = {"model": "small", "max_tokens": 32}
    tree["select"] |= {"value": "gain_and_judge", "judge": judge, "repeats": {}, "shuffle": True}
    return from_mapping(tree)


def graph_of(assemble: Callable[[beam.Pipeline], object]) -> beam_runner_api_pb2.Pipeline:
    """A pipeline as Dataflow gets it, with the options of the documented command.

    Without the runner's own class, which needs Google's client: the graph doesn't depend on it.
    """
    [options] = [options for options in COMMANDS if "--runner=DataflowRunner" in options]
    parsed = beam_options(options)
    image = parsed.view_as(WorkerOptions).sdk_container_image
    assert parsed.view_as(GoogleCloudOptions).project and image
    pipeline = beam.Pipeline(runner="FnApiRunner", options=PipelineOptions([]))
    assemble(pipeline)
    return pipeline.to_runner_api(default_environment=environments.DockerEnvironment.from_container_image(image))


def in_clean_workers(stage: Stage, installed: Path, folder: Path) -> Outcome:
    """Run the pipeline of a stage by workers that have the wheel alone, and start as those in a container do."""
    worker, url = folder / "worker.py", str(folder / f"outcome-{stage.name}")
    worker.write_text(WORKER)
    words = ["env", "-u", "PYTHONPATH", "-u", "VIRTUAL_ENV", str(installed / "python"), str(worker)]
    command = f"cd {shlex.quote(str(folder))} && exec {shlex.join(words)}"
    runner = FnApiRunner(default_environment=environments.SubprocessSDKEnvironment(command))
    pipeline = beam.Pipeline(runner=runner, options=PipelineOptions([]))
    stage.assemble(pipeline, url)
    pipeline.run().wait_until_finish()
    return take_outcome(url)


@pytest.fixture(scope="module")
def jobs(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    """Each stage's graph, and what clean workers make of it; and then the stage as ever, for the next one."""
    root, folder = tmp_path_factory.mktemp("dataflow"), tmp_path_factory.mktemp("workers")
    found = Jobs({}, {}, {}, folder)
    whole = Stage.run

    def capture(stage: Stage, **keys: Any) -> Any:
        found.graphs[stage.name] = graph_of(lambda pipeline: stage.assemble(pipeline, "memory://graph/outcome"))
        if stage.name in CLEAN:
            found.outcomes[stage.name] = in_clean_workers(stage, installed, folder)
        return whole(stage, **keys)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(conformance, "NUM_DOCUMENTS", 4)
        patched.setattr(Stage, "run", capture)
        found.made.update(run_module.mill(job(root, conformance.write_job(str(root), None))))
    return found


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
def test_generation_alone_asks_for_accelerators(jobs: Jobs) -> None:
    """Each model for its own: where it thinks, where it contracts documents, and where it judges."""
    assert set(jobs.graphs) == set(STAGES)
    hints = hints_of(jobs.graphs["augment"])
    for model, hint in HINTS.items():
        steps = [name for name, found in hints.items() if found == hint]
        own = (f"Generate with {model}", *(["Contract/Contract"] if model == "small" else []))
        assert steps and all(any(name in step for name in own) for step in steps), steps
        assert all(any(name in step for step in steps) for name in own), steps
    assert set(hints.values()) == set(HINTS.values())
    judging = hints_of(jobs.graphs["select"])
    assert judging and set(judging.values()) == {HINTS["small"]}
    assert all(step.startswith("Grade/") for step in judging), judging
    for stage in ("score", "pack"):
        assert hints_of(jobs.graphs[stage]) == {}, stage


@pytest.mark.slow
def test_one_image_and_nothing_that_only_one_runner_can_do(jobs: Jobs) -> None:
    """No state, timers, splittable reads of our own, streams or transforms in other languages."""
    for stage, graph in jobs.graphs.items():
        environments_here = graph.components.environments.values()
        assert {e.urn for e in environments_here} == {common_urns.environments.DOCKER.urn}
        images = {
            beam_runner_api_pb2.DockerPayload.FromString(environment.payload).container_image
            for environment in environments_here
        }
        assert images == {"europe-docker.pkg.dev/PROJECT/mill/thoughtmill-gpu:0.1.0"}, stage
        assert not [r for r in graph.requirements if "stateful" in r or "timer" in r or "stable_input" in r], stage
        for transform in graph.components.transforms.values():
            if transform.spec.urn == common_urns.primitives.PAR_DO.urn:
                payload = beam_runner_api_pb2.ParDoPayload.FromString(transform.spec.payload)
                assert not payload.state_specs and not payload.timer_family_specs, transform.unique_name
        bounded = {collection.is_bounded for collection in graph.components.pcollections.values()}
        assert bounded == {beam_runner_api_pb2.IsBounded.BOUNDED}, stage


def json_bytes(graph: beam_runner_api_pb2.Pipeline) -> int:
    return len(json_format.MessageToJson(graph, indent=None).encode())


@pytest.mark.slow
def test_the_job_stays_far_below_what_dataflow_takes(
    jobs: Jobs, record_property: Callable[[str, object], None]
) -> None:
    sizes = {stage: json_bytes(graph) for stage, graph in jobs.graphs.items()}
    record_property("bytes of each stage's graph", sizes)
    assert max(sizes.values()) < BYTES_OF_STEPS <= GRAPH_BYTES / 20, sizes


def test_what_grows_in_the_job_are_names(record_property: Callable[[str, object], None]) -> None:
    """A job says which parts there are, of a stage and of the ledger; docs/runners.md says how many fit."""
    number, root = 4000, "gs://bucket/some/folder"
    dated = [(1_763_000_000_000 + 977 * n, fingerprint([b"%d" % n], 16)) for n in range(number)]
    names = [f"{root}/ledger/part-{written_ms}-{digest}.arrow" for written_ms, digest in dated]
    parts = [f"{root}/stages/score/{part_name(SEGMENTS.name, n, number)}" for n in range(number)]

    def ledger(names: list[str]) -> Callable[[beam.Pipeline], object]:
        return lambda pipeline: pipeline | ReadLedger(names)

    def stage(urls: list[str]) -> Callable[[beam.Pipeline], object]:
        return lambda pipeline: pipeline | JoinParts(Parts("score", SEGMENTS, tuple(urls)))

    grown = {
        name: (json_bytes(graph_of(read(urls))) - json_bytes(graph_of(read(urls[:1])))) / number
        for name, read, urls in (("a part of a stage", stage, parts), ("a part of the ledger", ledger, names))
    }
    record_property("bytes of each name", grown)
    assert all(0 < size < BYTES_OF_A_PART[name] for name, size in grown.items()), grown


@pytest.mark.slow
def test_every_function_is_unpickled_where_the_wheel_alone_is(jobs: Jobs, installed: Path, tmp_path: Path) -> None:
    paths = []
    for stage, graph in jobs.graphs.items():
        paths.append(tmp_path / f"{stage}.pb")
        paths[-1].write_bytes(graph.SerializeToString())
    done = run([str(installed / "python"), "-c", UNPICKLE, *map(str, paths)], tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    said = json.loads(done.stdout)
    assert_clean(said, installed)
    steps = [step for graph in jobs.graphs.values() for step in graph.components.transforms.values()]
    assert said["loaded"]["steps"] == sum(step.spec.urn == common_urns.primitives.PAR_DO.urn for step in steps) > 100
    assert min(said["loaded"].values()) > 0, said["loaded"]


def assert_clean(said: dict[str, Any], installed: Path) -> None:
    """All of ours comes from the wheel."""
    assert said["strange"] == [] and {"augment", "pipelines", "sharding"} <= set(said["ours"])
    assert all(Path(file).is_relative_to(installed.parent) for file in said["ours"].values()), said["ours"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", CLEAN)
def test_workers_that_have_the_wheel_alone_make_the_same_files(jobs: Jobs, installed: Path, stage: str) -> None:
    made, files = jobs.made[stage], jobs.outcomes[stage].files
    found = {name: sorted(entries, key=lambda entry: entry.name) for name, entries in files.items() if entries}
    assert found == made.files
    workers = [json.loads(path.read_text()) for path in jobs.folder.glob("modules-*.json")]
    assert len(workers) >= len(CLEAN) + len(HINTS)  # steps with an accelerator have workers of their own
    for worker in workers:
        assert worker["strange"] == []
        assert all(Path(file).is_relative_to(installed.parent) for file in worker["ours"].values()), worker["ours"]
