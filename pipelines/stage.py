"""What the four stages share: skip what is done, refuse to overwrite by accident, run, report errors in one line."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineState

from pipelines import yaml_config
from pipelines.beam_options import beam_options, local_shuffle
from sharding import storage
from sharding.errors import MillError, RequestError, restated
from sharding.records.types import FileEntry
from sharding.storage import manifest
from sharding.storage.lease import Lease
from sharding.storage.manifest import STAGES, Manifest

WORKER_ERROR = re.compile(
    r"^(?:[\w.]+\.)?(?P<kind>MillError|RequestError|UnencodableText): (?P<message>.+)$", re.MULTILINE
)
"""How our own errors look in the traceback text that a remote worker sends back."""

WHILE_RUNNING = re.compile(r" \[while running '(?P<step>.*)'\]$", re.DOTALL)
"""What Beam appends to the message of an exception."""


class StageRun:
    """One stage of one run: its identity, and what its pipeline needs to finish.

    Args:
        output: the run's output folder.
        stage: one of `manifest.STAGES`.
        sections: the parts of the config that decide the stage's result, by name.
        inputs: what it reads, by name → digest.
    """

    def __init__(self, output: str, stage: str, sections: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
        self.output, self.stage, self.inputs = output, stage, dict(inputs)
        self.config = {name: _plain(section) for name, section in sections.items()}
        self.fingerprint = manifest.fingerprint(stage, self.config, self.inputs)
        self.folder = manifest.stage_url(output, stage)
        self.started_at = time.time()

    def manifest(
        self,
        *,
        files: Sequence[tuple[str, FileEntry]],
        counts: dict[str, Any],
        facts: dict[str, Any],
        rehearsal: bool,
    ) -> Manifest:
        """The stage's manifest, as of now; `manifest.write` publishes it when everything else is written."""
        families: dict[str, list[FileEntry]] = {}
        for family, entry in sorted(files, key=lambda pair: (pair[0], pair[1].name)):
            families.setdefault(family, []).append(entry)
        return Manifest(
            stage=self.stage,
            format=manifest.FORMAT,
            fingerprint=self.fingerprint,
            config=self.config,
            inputs=self.inputs,
            files=families,
            counts=counts,
            facts=facts,
            rehearsal=rehearsal,
            elapsed_s=round(max(0.0, time.time() - self.started_at), 3),
        )

    def done(self, *, replace: bool) -> Manifest | None:
        """The manifest of an earlier run of exactly this stage, or None when it has to run.

        Raises:
            RequestError: the output holds the stage made from another config or other inputs, and not `replace`.
        """
        found = manifest.read(self.output, self.stage)
        if found is None or found.fingerprint == self.fingerprint:
            return found
        if not replace:
            changes = differences(found.config, self.config) + differences(found.inputs, self.inputs, "input ")
            raise RequestError(
                f"output: {self.folder} holds the stage {self.stage} of another run ({'; '.join(changes[:5])}): "
                "name another output, or add --replace to make this stage and those after it again "
                "(the ledger of generations is kept either way)"
            )
        return None

    def clear(self) -> None:
        """Withdraw this stage and the later ones, so that nothing half-made looks finished.

        The files that their manifests name go too, unless they are another run's; the ledger is no stage's file and
        stays.
        """
        for stage in STAGES[STAGES.index(self.stage) :]:
            finished = manifest.read(self.output, stage)
            owned = finished.files if finished and not finished.folder else {}
            stale = [manifest.file_urls(self.output, finished, family) for family in owned] if finished else []
            for url in (
                manifest.manifest_url(self.output, stage),
                storage.join(manifest.stage_url(self.output, stage), manifest.SUCCESS_NAME),
            ):
                storage.remove(url)
            for url in itertools.chain.from_iterable(stale):
                storage.remove(url)


def run_stage(
    run: StageRun,
    build: Callable[[beam.Pipeline], None],
    *,
    without_work: Callable[[], None] | None = None,
    beam_args: Sequence[str] = (),
    replace: bool = False,
) -> tuple[Manifest, bool]:
    """Run the stage unless it is done.

    Args:
        run: the stage.
        build: adds its steps to a pipeline; the last one publishes the manifest.
        without_work: given where there is nothing to process: publishes the manifest in place of a pipeline, whose
            start takes a second here and minutes in a cloud.
        beam_args: Beam options.
        replace: make it again where another config has made it.

    Returns:
        Its manifest, and whether it ran now.

    Raises:
        MillError: a step failed; names the step.
        RequestError: a Beam option is unknown, the output holds another run's result, or another run is at work on it.
    """
    options = beam_options(beam_args)
    done = run.done(replace=replace)
    if done is not None:
        return done, False
    with Lease(run.output, run.stage) as lease:
        # Another run may have finished the stage a moment ago.
        done = run.done(replace=replace)
        if done is not None:
            return done, False
        run.clear()
        with local_shuffle(options, storage.join(run.output, "stages", f".shuffle-{run.stage}")):
            if without_work is None:
                _run(run, options, build)
            else:
                without_work()
        lease.check()
    return manifest.require(run.output, run.stage), True


def _run(run: StageRun, options: PipelineOptions, build: Callable[[beam.Pipeline], None]) -> None:
    pipeline = beam.Pipeline(options=options)
    build(pipeline)
    run_pipeline(pipeline, run.stage)


def run_pipeline(pipeline: beam.Pipeline, name: str) -> None:
    """Run a pipeline to its end; a failure becomes an error of ours that names the step.

    Raises:
        MillError: a step failed.
    """
    try:
        state = pipeline.run().wait_until_finish()
    except MillError as error:
        raise _located(error, name) from error
    except RuntimeError as error:
        # A worker process sends its exception back as text.
        if (found := _last(WORKER_ERROR, str(error))) is None:
            raise
        kind = RequestError if found["kind"] == "RequestError" else MillError
        raise _located(kind(found["message"]), name) from error
    if state not in (None, PipelineState.DONE):
        raise MillError(f"{name}: the runner ended with {state}: see its log")


def _plain(section: Any) -> Any:
    return section if isinstance(section, str | int | float | None | dict | list) else yaml_config.to_mapping(section)


def _located(error: MillError, stage: str) -> MillError:
    message = str(error)
    step = WHILE_RUNNING.search(message)
    where = f"{stage} ({step['step']})" if step else stage
    return restated(error, f"{where}: {WHILE_RUNNING.sub('', message)}")


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(reversed(list(pattern.finditer(text))), None)


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """The differences of two trees as "key: old → new"."""
    if isinstance(before, dict) and isinstance(after, dict):
        changes = []
        for key in sorted({*before, *after}):
            prefix = f"{path}{key}" if not path or path.endswith(" ") else f"{path}.{key}"
            changes += differences(before.get(key), after.get(key), prefix)
        return changes
    return [] if before == after else [f"{path}: {before!r} → {after!r}"]
