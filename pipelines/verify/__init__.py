"""Verify: whether an output is what its manifests say, down to the bit. Read-only; says what is wrong where.

    manifests ─► totals against each other
    every file ─► bytes, schema, rows, ids, counts ─► documents in two splits
    deep: shards ─► a pipeline: every document against what was scored and kept of it

Files are read in parallel, one batch at a time, in threads: hashing, decompression and array arithmetic run beside each
other. Which documents are where, 16 bytes each, is set aside on disk (`splits`) and looked at bucket by bucket, so
memory doesn't grow with the corpus. No pipeline is started but for `deep`.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from pipelines import provenance
from pipelines.delivered import Corpus, apart, corpora, deliveries_of, problems_of_join
from pipelines.deliveries_begun import untold
from pipelines.verify.files import READ_ERRORS, Found, check_part
from pipelines.verify.places import Places, check_places
from pipelines.verify.report import Checked, Problem, Report
from pipelines.verify.shards import check_shard
from pipelines.verify.splits import SeenDocuments
from pipelines.verify.task import Task
from pipelines.verify.totals import check_counts, check_manifests, check_totals
from pipelines.verify.work import Progress, Work
from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.packing.epochs import count_name
from sharding.records.types import FileEntry
from sharding.shards import rows
from sharding.storage import manifest
from sharding.storage.manifest import Manifest
from sharding.storage.output import Output

__all__ = ["Checked", "Problem", "Progress", "Report", "verify"]

COMPARED = ("shards", "epoch_shards", "segments", "kept", "rejected", "contaminated")
"""The families that `deep` compares."""

SHARDS = ("shards", "epoch_shards")
"""The families that are shards: of the corpus, and of what later epochs show of it."""

MAX_BUCKETS = 512

TOKENS_PER_BUCKET = 1 << 28
"""Documents are looked at for their splits in buckets of about so many tokens: some hundred thousand documents."""


def verify(
    output: storage.Location,
    *,
    deep: bool = False,
    workers: int | None = None,
    beam_args: Sequence[str] = (),
    on_progress: Progress | None = None,
) -> Report:
    """Check every manifest of the output, and every file that they name.

    Checked are: all four stages finished, each from the result of the one before that is there; every file's size,
    sha256, schema and rows; in the shards that each row's lengths, types and padding go together; that token ids are
    below the vocabulary size; the counts and token totals of every stage, recounted and against each other; no document
    in two splits; no file that a loader would take for a shard and that isn't one.

    Args:
        output: the run's output folder.
        deep: also compare every document in the shards, source and thoughts, with what was scored and kept, in a Beam
            pipeline; and look for texts that are in two splits.
        workers: files read at the same time, and processes of the pipeline on this machine; as many as there are
            processors when absent, processes only for large outputs.
        beam_args: Beam options for `deep`, in place of those that follow from `workers`.
        on_progress: told after every file how many bytes are done, and of how many; `deep`'s when it is done.

    Raises:
        MillError: the folder holds no finished run, or the pipeline failed.
        RequestError: there are Beam options and nothing for Beam to do, or one is unknown.
    """
    output = os.fspath(output)
    if beam_args and not deep:
        raise RequestError(f"{' '.join(beam_args)}: Beam options are for --deep; nothing else starts a pipeline")
    started = time.monotonic()
    report = Report(output=output, deep=deep)
    stages = _read_manifests(output, report)
    parts = _parts(output, stages, report)
    tasks = [task for part in parts for task in _tasks(part.output, part.stages)]
    report.problems += check_manifests(output, stages)
    for part in parts:
        if part.number:
            report.problems += check_manifests(part.output, part.stages)
        report.problems += check_totals(part.output, part.stages)
    tokens = sum(sum(task.entry.tokens.values()) for task in tasks)
    compared_bytes = _size_bytes(task for task in tasks if task.family in COMPARED) if deep else 0
    # A queue that isn't worked off dies with the folder of what was seen, so the pool is left first.
    with (
        SeenDocuments(min(MAX_BUCKETS, 1 + tokens // TOKENS_PER_BUCKET)) as seen,
        ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool,
    ):
        work = Work(pool, _size_bytes(tasks) + compared_bytes, on_progress)
        can_be_compared = [_check_files(part, seen, work, report) for part in parts]
        comparable = all(can_be_compared)
        shards = [task for task in tasks if task.family in SHARDS]
        report.checked.documents, problems = seen.check(output, shards)
        report.problems += problems
    report.problems += [Problem(where, what) for where, what in provenance.problems(output)]
    if deep and comparable:
        from pipelines.verify import deep as pipeline  # Beam takes a second to import

        options = beam_args or pipeline.local_workers(workers, compared_bytes)
        found = pipeline.compare(output, parts, options)
        work.advance(compared_bytes)
        report.problems += found.problems
        report.checked.documents_compared = found.counts.get("documents", 0)
        report.checked.thoughts_compared = found.counts.get("thoughts", 0)
    elif deep:
        said = "was not compared with what was scored and kept: first mend what is damaged or missing"
        report.problems.append(Problem(output, said))
    report.problems.sort()
    report.ok = not report.problems
    report.elapsed_s = round(time.monotonic() - started, 3)
    return report


def _read_manifests(output: str, report: Report) -> dict[str, Manifest]:
    packed = manifest.read(output, "pack")
    if packed is None and storage.exists(Output(output).removal_journal):
        raise MillError(
            f"a removal of documents from {output} was interrupted: `thoughtmill remove {output}` finishes it"
        )
    if packed is None:
        raise MillError(f"{output} holds no finished run: {manifest.manifest_url(output, 'pack')} is missing")
    report.rehearsal = packed.rehearsal
    stages = {}
    for stage in manifest.STAGES:
        found = manifest.read(output, stage)
        if found is None:
            report.problems.append(Problem(manifest.manifest_url(output, stage), "is missing"))
        else:
            stages[stage] = found
    if storage.exists(journal := Output(output).removal_journal):
        report.problems.append(Problem(journal, "a removal was interrupted: `thoughtmill remove OUTPUT` finishes it"))
    success = Output(output).success
    if not storage.exists(success):
        report.problems.append(Problem(success, "is missing: the run did not finish"))
    report.checked.manifests = len(stages)
    return stages


def _parts(output: str, stages: Mapping[str, Manifest], report: Report) -> list[Corpus]:
    """The first documents and the deliveries that have joined them; what of these can't be had is told."""
    own = Corpus(output, 0, {**stages, "pack": apart(stages["pack"])})
    if not deliveries_of(stages["pack"]):
        return [own]
    try:
        parts = [own, *(part for part in corpora(output) if part.number)]
    except MillError as error:
        report.problems.append(Problem(output, f"a delivery that has joined can't be read: {error}"))
        return [own]
    url = manifest.manifest_url(output, "pack")
    report.problems += [Problem(url, what) for what in problems_of_join(output, stages["pack"], parts)]
    if untold(output):
        said = (
            "does not tell of its last delivery yet: `thoughtmill append` was interrupted, and goes on when run again"
        )
        report.problems.append(Problem(Output(output).card, said))
    report.checked.manifests += sum(len(part.stages) for part in parts[1:])
    return parts


def _tasks(output: str, stages: Mapping[str, Manifest]) -> list[Task]:
    named: list[tuple[Manifest, str, FileEntry]] = [
        (stage, family, entry) for stage in stages.values() for family in stage.files for entry in stage.files[family]
    ]
    vocab_size = stages["pack"].facts.get("vocab_size")
    if not isinstance(vocab_size, int) or "sequence_length" not in stages["pack"].config.get("pack", {}):
        url = manifest.manifest_url(output, "pack")
        raise MillError(f"{url} says no facts.vocab_size or config.pack.sequence_length: it was not written by pack")
    return [Task(output, *of_file, vocab_size) for of_file in named]


def _size_bytes(tasks: Iterable[Task]) -> int:
    return sum(task.entry.size_bytes for task in tasks)


def _check_files(part: Corpus, seen: SeenDocuments, work: Work, report: Report) -> bool:
    """Check every file and the counts of every stage; whether the files that `deep` compares can be compared."""
    stages, tasks = part.stages, _tasks(part.output, part.stages)
    splits = sorted({rows.split_of(task.entry) for task in tasks if task.family in SHARDS})

    def check(task: Task) -> Found:
        try:
            if task.family in SHARDS:
                return check_shard(task, splits.index(rows.split_of(task.entry)), seen)
            return check_part(task)
        except READ_ERRORS as error:
            missing = isinstance(error.__cause__, FileNotFoundError)
            return Found([Problem(task.url, "is missing" if missing else f"cannot be read: {error}")])

    counts: dict[str, Counter[str]] = {stage: Counter() for stage in stages}
    damaged: set[str] = set()
    places: dict[str, dict[str, Places]] = {"shards": {}, "documents": {}}
    comparable = {"score", "select"} <= set(stages)
    for task, found in work.each(check, tasks):
        work.advance(task.entry.size_bytes)
        report.problems += found.problems
        epoch = rows.epoch_of(task.entry) if task.family == "epoch_shards" else 0
        counts[task.stage.stage].update(
            {count_name(epoch, name): number for name, number in found.counts.items()} if epoch else found.counts
        )
        for shard, there in () if epoch else found.places.items():  # the index is of the first epoch
            of_family = places[task.family]
            of_family[shard] = of_family.get(shard, Places()) + there
        if not found.readable:
            damaged.add(task.stage.stage)
            comparable &= task.family not in COMPARED
    for stage, made in stages.items():
        if stage not in damaged:
            report.problems += check_counts(part.output, made, counts[stage])
    if "pack" not in damaged and "documents" in stages["pack"].files:
        report.problems += check_places(part.output, places["shards"], places["documents"])
    report.checked.files += len(tasks)
    report.checked.size_bytes += _size_bytes(tasks)
    report.checked.rows += counts["pack"]["rows"]
    report.checked.tokens += sum(number for name, number in counts["pack"].items() if name.startswith("tokens_"))
    return comparable
