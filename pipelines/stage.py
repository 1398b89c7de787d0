"""A stage: skip what is done, refuse to overwrite by accident, run, check the account, publish. The four are children.

    identity ─► done already? ─► lease ─► withdraw ─► pipeline ─► account ─► still our lease? ─► publish
    config and inputs                                 └► what it made and counted, in a small file

A child says what it is made from and how its pipeline is built; nothing is touched before the lease is held, and
nothing is published by a run that has lost it. Publishing is this process's, after the pipeline: a worker that a runner
thought dead, and that comes to its end late, can leave a small file behind and no more.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, ClassVar

import apache_beam as beam
import msgspec
from apache_beam.options.pipeline_options import PipelineOptions

from pipelines import accounts, runner_faults, worker_server, yaml_config
from pipelines.beam_options import beam_options, local_shuffle
from pipelines.config import Workers
from pipelines.deliveries_begun import refuse_delivered
from pipelines.local_workers import has_processes
from pipelines.outcome import Built, Outcome, WriteOutcome, take_outcome
from pipelines.running import run_pipeline
from pipelines.tombstones import refuse_unfinished
from pipelines.workers import WORKER_BYTES, set_workers
from sharding import sources, storage
from sharding.beam.parts import WriteParts
from sharding.errors import RequestError
from sharding.storage import manifest
from sharding.storage.lease import Lease
from sharding.storage.manifest import STAGES, Manifest
from sharding.storage.output import Output
from sharding.storage.private import temporary_folder


class Did(StrEnum):
    """What running a stage came to.

    Attributes:
        RAN: it was made.
        REVISED: it was made before; what is told about it was written anew, its files are untouched.
        NOTHING: it was done already.
    """

    RAN = "ran"
    REVISED = "revised"
    NOTHING = "nothing"


class Stage:
    """One stage of one run.

    Args:
        output: the run's output folder.
        sections: the parts of the config that the manifest records, by name: see `manifest.TOLD`.
        inputs: what it reads, by name → digest.
        earlier: the manifests of the stages before that its account is held against.
        rehearsal: it is not for training, whatever those before it are.
    """

    name: ClassVar[str]
    """One of `manifest.STAGES`."""

    idle = False
    """Whether there is nothing to process: a pipeline's start takes a second here and minutes in a cloud."""

    num_parts = 1
    """How many parts a family is dealt out to."""

    work_s = 0.0
    """About how many seconds it takes one core: worker processes are started for that."""

    loads_model = False
    """Whether its workers load a model, other than the engines that they share."""

    worker_bytes = WORKER_BYTES
    """Memory that one more worker process takes."""

    vocab_size: int | None = None
    """Entries of the training vocabulary, where parts hold its ids."""

    def __init__(
        self,
        output: str,
        *,
        sections: Mapping[str, Any],
        inputs: Mapping[str, str],
        earlier: Iterable[Manifest] = (),
        rehearsal: bool = False,
    ) -> None:
        self.output, self.inputs, self.at = output, dict(inputs), Output(output)
        self.sections = {name: _plain(section) for name, section in sections.items()}
        self.fingerprint = manifest.fingerprint(self.name, self.sections, self.inputs)
        self.folder = self.at.stage(self.name)
        self.earlier = {found.stage: found for found in earlier}
        self.rehearsal = rehearsal or any(found.rehearsal for found in self.earlier.values())
        self.started_at = time.time()

    # --- what a child says --------------------------------------------------------------------------------------------

    def build(self, root: beam.Pipeline) -> Built:
        """Add the stage's steps to a pipeline."""
        raise NotImplementedError

    def conclude(self, outcome: Outcome) -> tuple[dict[str, int], dict[str, Any]]:
        """The counts and facts of the manifest, from what the pipeline made.

        Raises:
            MillError: it is not good enough.
        """
        raise NotImplementedError

    def prepare(self, options: PipelineOptions) -> None:
        """What has to be found out before the stage is made, while the lease is held and nothing is withdrawn yet.

        Raises:
            RequestError: it can't be made as asked.
            MillError: it couldn't be found out.
        """

    def at_work(self) -> contextlib.AbstractContextManager[Any]:
        """What is around the pipeline, while the lease is held."""
        return contextlib.nullcontext()

    def write_beside(self, made: Manifest) -> None:
        """Write what goes with the manifest, before it."""

    def revised(self, found: Manifest) -> Manifest | None:
        """What the manifest of this stage, done before, should say now; None where the stage is to be made again."""
        return msgspec.structs.replace(found, config=self.sections)

    def growth(self, found: Manifest) -> sources.Growth | None:
        """What has come to the sources that this stage reads, where it was made from the same config and nothing else
        has changed since; None otherwise.

        Args:
            found: its manifest of then.

        Raises:
            MillError: it couldn't be found out.
        """
        return None

    # --- the skeleton -------------------------------------------------------------------------------------------------

    def run(
        self,
        *,
        beam_args: Sequence[str] = (),
        workers: Workers = "auto",
        replace: bool = False,
        force: bool = False,
        in_place_of: str | None = None,
        on_begin: Callable[[], None] = lambda: None,
    ) -> tuple[Manifest, Did]:
        """Run the stage unless it is done.

        Args:
            beam_args: Beam options.
            workers: worker processes of Beam's local runner, where its options don't say.
            replace: make it again where another config has made it.
            force: make it again whatever made it.
            in_place_of: fingerprint of an earlier result in whose place it may be made, without `replace`.
            on_begin: called when this run holds the lease and begins.

        Returns:
            Its manifest, and what was done.

        Raises:
            MillError: a step failed, which it names; or what was made doesn't add up.
            RequestError: a Beam option is unknown, the output holds another run's result, or another run is at work
                on it.
        """
        temporary_folder()  # Beam needs one
        options = beam_options(beam_args)
        refuse_unfinished(self.output)
        found, revised = (None, None) if force else self._done(replace, in_place_of)
        if found is not None and found == revised and self._is_published():
            return found, Did.NOTHING
        self.at.check_links()
        with Lease(self.output, self.name) as lease:
            refuse_unfinished(self.output)
            # Another run may have finished it a moment ago.
            found, revised = (None, None) if force else self._done(replace, in_place_of)
            if found is not None and found == revised and self._is_published():
                return found, Did.NOTHING
            for folder in self.at.folders:
                storage.sweep(folder)
            if revised is None:
                refuse_delivered(self.output)
                runner_faults.check(options)
                on_begin()
                self.prepare(options)
                set_workers(
                    options,
                    beam_args,
                    workers,
                    work_s=self.work_s,
                    loads_model=self.loads_model,
                    worker_bytes=self.worker_bytes,
                )
                self._withdraw()
                made, did = self.make(options), Did.RAN
            else:
                made, did = revised, Did.REVISED
            lease.check()
            for stray in manifest.strays(self.output, made):
                storage.remove(stray, self.output)
            self.write_beside(made)
            lease.check()
            manifest.write(self.output, made)
            if self.name == STAGES[-1]:
                storage.write_bytes(self.at.success, b"")
        return made, did

    def refuse_another(self) -> None:
        """Refuse an output that holds this stage made from another config or other inputs.

        Raises:
            RequestError: it does; names the keys that differ.
        """
        self._done(replace=False)

    def _done(self, replace: bool, in_place_of: str | None = None) -> tuple[Manifest | None, Manifest | None]:
        """The manifest of an earlier run of exactly this stage, and what it should say now.

        Raises:
            RequestError: the output holds the stage made from another config or other inputs, and neither `replace` nor
                `in_place_of` allows for that.
        """
        found = manifest.read(self.output, self.name, any_format=replace)
        if found is None:
            return None, None
        if found.fingerprint == self.fingerprint:
            return found, self.revised(found)
        if not replace and found.fingerprint != in_place_of:
            changes = differences(found.config, self.sections) + differences(found.inputs, self.inputs, "input ")
            raise RequestError(
                f"output: {self.folder} holds the stage {self.name} of another run ({'; '.join(changes[:5])}): "
                "name another output, or add --replace to make this stage and those after it again "
                "(the ledger of generations is kept either way)"
            )
        return None, None

    def _is_published(self) -> bool:
        """Whether the last act of publishing is done too: a run may have been killed between it and the manifest."""
        return self.name != STAGES[-1] or storage.exists(self.at.success)

    def _withdraw(self) -> None:
        """Withdraw this stage and the later ones, so that nothing half-made looks finished.

        The files that their manifests name go too, unless they are another run's; the ledger is no stage's file and
        stays.
        """
        storage.remove(self.at.success, self.output)
        for stage in reversed(STAGES[STAGES.index(self.name) :]):
            finished = manifest.read(self.output, stage, any_format=True)
            storage.remove(self.at.manifest(stage), self.output)
            if finished is not None and not finished.folder:
                self.discard(finished)

    def discard(self, finished: Manifest) -> None:
        """Remove the files of a manifest, of this stage or a later one, that was withdrawn."""
        for family in finished.files:
            for url in manifest.file_urls(self.output, finished, family):
                storage.remove(url, self.output)

    def make(self, options: PipelineOptions) -> Manifest:
        """Run the pipeline, and hold the account of what it made."""
        with self.at_work():
            outcome = Outcome() if self.idle else self._run_pipeline(options)
        always = dict.fromkeys(accounts.ALWAYS_COUNTED[self.name], 0)
        counts, facts = self.conclude(msgspec.structs.replace(outcome, counts=always | outcome.counts))
        made = Manifest(
            stage=self.name,
            format=manifest.FORMAT,
            fingerprint=self.fingerprint,
            config=self.sections,
            inputs=self.inputs,
            files={
                family: sorted(entries, key=lambda entry: entry.name)
                for family, entries in sorted(outcome.files.items())
                if entries
            },
            counts=counts,
            facts=facts,
            rehearsal=self.rehearsal,
            elapsed_s=round(max(0.0, time.time() - self.started_at), 3),
        )
        accounts.check(self.name, self.earlier | {self.name: made})
        return made

    def assemble(self, root: beam.Pipeline, url: str) -> None:
        """Add all the steps of the stage to a pipeline, down to the one that writes its `Outcome` to `url`."""
        built = self.build(root)
        files = {family.name: entries for family, entries in built.files.items()}
        for family, found in built.parts.items():
            write = WriteParts(self.folder, family, self.num_parts, vocab_size=self.vocab_size)
            files[family.name] = found | f"Write {family.name}" >> write
        root | "Outcome" >> WriteOutcome(url, files, built.counts, built.facts)

    def _run_pipeline(self, options: PipelineOptions) -> Outcome:
        url = self.at.outcome(self.name, secrets.token_hex(8))
        for name in storage.list_names(self.at.stages):
            if name.startswith(f".outcome-{self.name}-"):  # of a run that was killed
                storage.remove(storage.join(self.at.stages, name), self.output)
        if has_processes(options):
            worker_server.start(self.sections.get("tokenizer") or "")
        with local_shuffle(options, self.at.shuffle(self.name)):
            pipeline = beam.Pipeline(options=options)
            self.assemble(pipeline, url)
            run_pipeline(pipeline, self.name)
        return take_outcome(url)


def _plain(section: Any) -> Any:
    return section if isinstance(section, str | int | float | None | dict | list) else yaml_config.to_mapping(section)


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """The differences of two trees as "key: old → new"."""
    if isinstance(before, dict) and isinstance(after, dict):
        changes = []
        for key in sorted({*before, *after}):
            prefix = f"{path}{key}" if not path or path.endswith(" ") else f"{path}.{key}"
            changes += differences(before.get(key), after.get(key), prefix)
        return changes
    return [] if before == after else [f"{path}: {before!r} → {after!r}"]
