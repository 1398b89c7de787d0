"""Clusters' rules, kept without a cluster: steps computed again give the same bytes, and nothing is bought twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner, translations
from apache_beam.runners.portability.fn_api_runner.execution import GroupingBuffer

from augment.engines.protocol import Generation, GenerationRequest
from augment.engines.rehearsal import RehearsalEngine
from pipelines.augment import Augment
from pipelines.config import MillConfig
from pipelines.pack import Pack
from pipelines.run import mill
from pipelines.score import Score
from pipelines.select import Select
from pipelines.stage import Stage
from pipelines.tools import conformance
from pipelines.tools.computing_twice import ComputingTwiceRunner, LastOutputFirstRunner
from pipelines.yaml_config import from_mapping, to_mapping
from sharding.beam import shuffle
from sharding.storage.manifest import Manifest
from tests import measuring_runner
from tests.reordering_runner import PARTITIONS, ReorderingRunner

RUNNERS = {
    "first output first": ["--runner=pipelines.tools.computing_twice.ComputingTwiceRunner"],
    "last output first": ["--runner=pipelines.tools.computing_twice.LastOutputFirstRunner"],
    "several partitions, the other way round": ["--runner=tests.reordering_runner.ReorderingRunner"],
}
RECIPE = {"name": "refined", "model": "large", "prompt": "expert", "max_tokens": 200, "recipe": "refine"}


COMPUTED: list[int] = []
TOGETHER: list[list[tuple[str, list[int]]]] = []
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


class _NoteFn(beam.DoFn):
    """Notes what comes together: a list for each bundle."""

    def start_bundle(self) -> None:
        TOGETHER.append([])

    def process(self, element: Any) -> Any:
        TOGETHER[-1].append((element[0], list(element[1])))
        return ()


@pytest.mark.parametrize(("runner", "turned"), [(FnApiRunner, False), (ReorderingRunner, True)])
def test_partitions_and_their_order_are_others(runner: type[FnApiRunner], turned: bool) -> None:
    """That runner too does what it is for."""
    TOGETHER.clear()
    with beam.Pipeline(runner=runner()) as pipeline:
        keyed = pipeline | beam.Create([(key, n) for n in range(3) for key in "abcd"], reshuffle=False)
        keyed | beam.GroupByKey() | beam.ParDo(_NoteFn())
    bundles = [bundle for bundle in TOGETHER if bundle]
    keys, values = [key for bundle in bundles for key, _ in bundle], [of for bundle in bundles for _, of in bundle]
    assert sorted(keys) == list("abcd") and all(sorted(of) == [0, 1, 2] for of in values)
    assert (len(bundles) == PARTITIONS) == turned and (keys != sorted(keys)) == turned
    assert (values == [[0, 1, 2]] * 4) != turned


def job(root: Path, output: str, tokenizer: str) -> MillConfig:
    """The fixed job, with all that buys: several samples, a recipe, a judge; and with all that goes by side inputs."""
    tree = to_mapping(conformance.job_config(str(root), str(root / output), tokenizer))
    tree["budget"]["tiers"].append(RECIPE)
    judge = {"model": "small", "max_tokens": 32}
    tree["select"] |= {"value": "gain_and_judge", "judge": judge, "repeats": {}, "shuffle": True}
    return from_mapping(tree)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("twice")


@pytest.fixture(scope="module")
def runs(root: Path) -> dict[str, tuple[dict[str, str], Counter[str], dict[str, Manifest]]]:
    """Of each runner: the hashes of its files, how often each request was asked for, and its manifests."""
    asked = Counter[str]()
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


@pytest.fixture(scope="module")
def milled(runs: dict[str, Any], root: Path) -> MillConfig:
    """The job that was run once."""
    return job(root, "out-0", str(root / "tokenizer"))


@pytest.mark.slow
@pytest.mark.parametrize("runner", RUNNERS)
def test_the_same_bytes_and_nothing_bought_twice(runs: dict[str, Any], runner: str) -> None:
    (expected, _, _), (found, asked, _) = runs["once"], runs[runner]
    assert found == expected and {name.partition("/")[0] for name in found} == {"score", "augment", "select", "pack"}
    assert set(asked.values()) == {1} and asked == runs["once"][1]


@pytest.mark.slow
@pytest.mark.parametrize("runner", RUNNERS)
def test_the_counts_are_those_of_a_run_that_computes_once(runs: dict[str, Any], runner: str) -> None:
    """But for what verdicts and contractions cost, of which a step that is computed again finds all that it bought."""
    found_again = (
        *("judge_tokens", "judge_prompt_tokens"),
        *("contraction_tokens", "contraction_prompt_tokens", "contractions"),
    )
    for stage, once in runs["once"][2].items():
        counts, expected = dict(runs[runner][2][stage].counts), dict(once.counts)
        for name in found_again:
            both = [each.pop(f"{name}_now", 0) + each.pop(f"{name}_found", 0) for each in (counts, expected)]
            assert both[0] == both[1], (stage, name)
        assert counts == expected, stage
        assert json.dumps(runs[runner][2][stage].facts, sort_keys=True, default=str).count("nan") == 0
    augmented = runs["once"][2]["augment"].counts
    assert augmented["tier.refined.requests"] and augmented["generated"] and runs["once"][2]["select"].counts["judged"]


# --- what Spark's and Flink's translators take ------------------------------------------------------------------------

TAKEN = {
    common_urns.primitives.IMPULSE.urn,
    common_urns.primitives.FLATTEN.urn,
    common_urns.primitives.GROUP_BY_KEY.urn,
    common_urns.composites.RESHUFFLE.urn,
    common_urns.executable_stage,
}
"""All that SparkBatchPortablePipelineTranslator (in runners/spark) and FlinkBatchPortablePipelineTranslator (in
runners/flink) of apache/beam have a translator for; anything else is an "unknown URN" to both."""

SDK_STEPS = {
    common_urns.primitives.PAR_DO.urn,
    common_urns.primitives.FLATTEN.urn,
    common_urns.combine_components.COMBINE_PER_KEY_PRECOMBINE.urn,
    common_urns.combine_components.COMBINE_PER_KEY_MERGE_ACCUMULATORS.urn,
    common_urns.combine_components.COMBINE_PER_KEY_EXTRACT_OUTPUTS.urn,
}
"""What a fused step consists of: run by the Python worker, but without state, timers and splittable functions."""

KEYS = {common_urns.coders.STRING_UTF8.urn, common_urns.coders.VARINT.urn}
"""Of the coders in Java's ModelCoderRegistrar (in sdks/java/core) those that keys have. A runner groups by a key's
bytes, so none may be in a coder that spells it in two ways; values in a coder unknown to Java travel as bytes."""

PICKLED = "beam:coder:pickled_python:v1"
"""The coder of the key of a global combination, which is None and pickles in one way alone."""


def fused(config: MillConfig, stage: type[Stage]) -> beam_runner_api_pb2.Pipeline:
    pipeline = beam.Pipeline(options=PipelineOptions(["--runner=PortableRunner"]))
    stage(config).assemble(pipeline, "memory://graph/outcome")
    native = frozenset(TAKEN - {common_urns.executable_stage})
    return translations.optimize_pipeline(pipeline.to_runner_api(), translations.standard_optimize_phases(), native)


def key_coder(graph: beam_runner_api_pb2.Pipeline, transform: beam_runner_api_pb2.PTransform) -> str:
    (grouped,) = transform.inputs.values()
    coders = graph.components.coders
    coder = coders[coders[graph.components.pcollections[grouped].coder_id].component_coder_ids[0]]
    while coder.spec.urn == common_urns.coders.LENGTH_PREFIX.urn:
        coder = coders[coder.component_coder_ids[0]]
    return str(coder.spec.urn)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [Score, Augment, Select, Pack])
def test_spark_and_flink_take_every_stage(milled: MillConfig, stage: type[Stage]) -> None:
    graph = fused(milled, stage)
    assert not graph.requirements
    windows = {each.window_fn.urn for each in graph.components.windowing_strategies.values()}
    assert windows == {common_urns.global_windows.urn}
    steps = [graph.components.transforms[name] for name in graph.root_transform_ids]
    assert {step.spec.urn for step in steps} <= TAKEN
    for step in steps:
        if step.spec.urn == common_urns.primitives.GROUP_BY_KEY.urn:
            coder, name = key_coder(graph, step), step.unique_name
            assert coder in KEYS or (coder == PICKLED and "/CombinePerKey/" in name), (name, coder)
        elif step.spec.urn == common_urns.executable_stage:
            payload = beam_runner_api_pb2.ExecutableStagePayload.FromString(step.spec.payload)
            assert not payload.user_states and not payload.timers
            inner = [payload.components.transforms[name] for name in payload.transforms]
            assert {each.spec.urn for each in inner} <= SDK_STEPS
            for each in inner:
                if each.spec.urn == common_urns.primitives.PAR_DO.urn:
                    do = beam_runner_api_pb2.ParDoPayload.FromString(each.spec.payload)
                    assert not do.restriction_coder_id and not do.requires_stable_input


# --- the largest keys and side inputs ---------------------------------------------------------------------------------

COPIES, COPY_CHARACTERS, HUGE_CHARACTERS = 60, 1500, 120_000
"""A corpus in one file: the same text under so many ids, and one document that is most of it."""

TEXT_BYTES = COPIES * COPY_CHARACTERS + HUGE_CHARACTERS
SAMPLES, CAP_TOKENS, POOL = 3, 160, 8
ORIGIN_BYTES = 60
"""Where a document was read: a file and a line."""

BOUNDS = {
    # score
    "Source/Group texts": (60 + ORIGIN_BYTES) * COPIES,
    "Source/Group/": HUGE_CHARACTERS + 1000,
    "Source/Near-copies/Meet": (260 + ORIGIN_BYTES) * COPIES,
    "Source/Near-copies/Seen": 16 * 2 * (60 + ORIGIN_BYTES) * COPIES,
    "Source/Near-copies/By later": 2 * (60 + ORIGIN_BYTES) * COPIES,
    "Source/By ": 1000,  # the pieces of a file, the tallies of all files
    "Memory/Ranges": 12 * 4096 * 1.25,  # too few for more than one range
    "Memory/All ranges": 12 * 4096 * 1.25 + 1000,
    "Histogram/": 12_600 + 1000,
    "Write segments": 4 * TEXT_BYTES,
    "Write near_copies": 60 * COPIES,
    # augment
    "Missing/Join": 4 * 2048 + 8 * CAP_TOKENS * SAMPLES + 4000,  # a request once for each bundle, its rows
    "Write requests": 100 * TEXT_BYTES / 300,
    # select
    "By request": COPIES * (4.1 * 512 + 200) + SAMPLES * (4.1 * CAP_TOKENS + 500),
    "Controls/Pool": POOL * SAMPLES * (8 * CAP_TOKENS + 400),
    "Repeats/": 2000,  # as many cuts as may be alike, of each bundle
    "Diversity/": 200_000,
    "Shuffle/": 9 * CAP_TOKENS * SAMPLES * TEXT_BYTES / 500,
    "Write kept": 9 * CAP_TOKENS * SAMPLES * TEXT_BYTES / 500,
    "Write rejected": 9 * CAP_TOKENS * SAMPLES * TEXT_BYTES / 500,
    # pack
    "Shards/Group items": 6 * TEXT_BYTES,
    "Shards/Group rows": 6 * TEXT_BYTES,
    "Shards/Index": 100 * COPIES * 8,
    "Shards/": 1000,
    # all
    "Outcome/": 4000,
}
"""Step → bytes that one key of it may hold in that corpus. docs/scale.md says the same of any, in words."""

SIDE_BOUNDS = {
    "Choose": 2 * POOL * SAMPLES * (8 * CAP_TOKENS + 400),
    "Outcome/": 4000,
    "Score/": 200,
    "Source/": 4000,
    "Shards/": 4000,
    "InjectDefault": 200_000,
}
"""The same of what goes to every worker; a default is that of a combination."""


def bound_of(name: str, bounds: Mapping[str, float]) -> float:
    return next((bound for step, bound in bounds.items() if step in f"/{name}"), 0.0)


@pytest.mark.slow
def test_the_largest_keys_and_side_inputs_of_a_skewed_corpus_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # origins are file names
    conformance.train_tokenizer(tmp_path / "tokenizer")
    documents = [{"id": f"copy-{i}", "text": topics["assignment"][:COPY_CHARACTERS]} for i in range(COPIES)]
    documents.append({"id": "huge", "text": " ".join(topics[name] for name in sorted(topics))[:HUGE_CHARACTERS]})
    (tmp_path / "source").mkdir()
    lines = "".join(json.dumps(document) + "\n" for document in documents)
    (tmp_path / "source" / "all.jsonl").write_text(lines, encoding="utf-8")
    tree = to_mapping(conformance.job_config("", str(tmp_path / "out"), str(tmp_path / "tokenizer")))
    tree["source"] |= {"path": "source/*.jsonl", "metadata_fields": []}
    tree["difficulty"] |= {"segment_tokens": 512, "memory": {"order": 3, "max_ngrams": 4096}}
    tree["budget"]["thinking_tokens_per_source_token"] = 1.0
    repeats = {"shapes_at_most": 5, "near_copies_at_most": 5}
    tree["select"] |= {
        "value": "continuation_gain",
        "repeats": repeats,
        "shuffle": True,
        "gain": {"control_pool": POOL},
    }
    measuring_runner.LARGEST_KEYS.clear()
    measuring_runner.SIDE_INPUTS.clear()
    mill(from_mapping(tree), beam_args=["--runner=tests.measuring_runner.MeasuringRunner"])
    assert len(measuring_runner.LARGEST_KEYS) > 30 and len(measuring_runner.SIDE_INPUTS) > 10
    for found, bounds in ((measuring_runner.LARGEST_KEYS, BOUNDS), (measuring_runner.SIDE_INPUTS, SIDE_BOUNDS)):
        beyond = {name: (size, bound_of(name, bounds)) for name, size in found.items() if size > bound_of(name, bounds)}
        assert not beyond, "steps of which more than is promised meets in one place, and what is promised"


# --- nothing held whole by the local runner ---------------------------------------------------------------------------


@pytest.mark.slow
def test_the_local_runner_holds_no_collection_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a memory, values and two models: what goes from step to step there are names of files, counts and sums.

    The sum of diversity is left out: its size is bounded, and more than so short a text.
    """
    execute = FnApiRunner._execute_bundle
    held: Counter[str] = Counter()

    def watched(runner: Any, context: Any, step: Any, bundle_input: Any) -> Any:
        result = execute(runner, context, step, bundle_input)
        waiting = [each.data for _, each in context.queues.watermark_pending_inputs._q]
        for reader, buffer in (pair for data in waiting for pair in data.items()):
            held[reader] = max(sum(map(len, _pieces(buffer))), held[reader])
        return result

    conformance.train_tokenizer(tmp_path / "tokenizer")
    names = sorted(topics)[:24]
    documents = [{"id": name, "text": f"{name} {topics[name][:4000]}", "kind": "page"} for name in names]
    (tmp_path / "source").mkdir()
    lines = "".join(json.dumps(document) + "\n" for document in documents)
    (tmp_path / "source" / "all.jsonl").write_text(lines, encoding="utf-8")
    tree = to_mapping(conformance.job_config(str(tmp_path), str(tmp_path / "out"), str(tmp_path / "tokenizer")))
    tree["difficulty"]["memory"] = {"order": 2, "max_ngrams": 256}
    tree["select"] |= {"value": "continuation_gain", "gain": {"control_pool": 2}}
    monkeypatch.setattr(shuffle, "MIN_PARTITIONS", 4)  # for few names
    monkeypatch.setattr(FnApiRunner, "_execute_bundle", watched)
    mill(from_mapping(tree))
    text_bytes = sum(len(document["text"]) for document in documents)
    assert len(held) > 40
    assert not [r for r, size in held.items() if size > text_bytes / 2 and "Diversity" not in r]


def _pieces(buffer: Any) -> Any:
    if isinstance(buffer, GroupingBuffer):
        return (value for values in buffer._table.values() for value in values if isinstance(value, bytes))
    return buffer
