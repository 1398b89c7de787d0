"""Beam options from the words after `--` on the command line."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from secrets import token_hex

from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions, StandardOptions
from fsspec.implementations.local import LocalFileSystem

from pipelines import runner_faults
from sharding import storage
from sharding.beam.shuffle import LocalShuffleOptions
from sharding.errors import RequestError
from sharding.hashing import content_id
from sharding.storage.private import fresh_folder, private_folder

IN_PROCESS_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
"""The default: Beam's DirectRunner would first try to download Prism."""


def beam_options(arguments: Sequence[str]) -> PipelineOptions:
    """The options; without a runner among them, the in-process one.

    Raises:
        RequestError: an option that Beam does not know, which Beam itself would only warn about.
    """
    for before, word in zip(("", *arguments), arguments, strict=False):
        if not word.startswith("--") and (not before.startswith("--") or "=" in before):
            raise RequestError(
                f"{word!r} is no option: after the config come Beam options only, such as -- --runner=..."
            )
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options = PipelineOptions(list(arguments))
            known = options.get_all_options(drop_default=True)
            everything = options.get_all_options(drop_default=True, retain_unknown_options=True)
    except SystemExit as error:
        reason = said.getvalue().strip().rpartition("error: ")[2]
        raise RequestError(f"Beam does not accept the options {' '.join(arguments)}: {reason}") from error
    if unknown := sorted(set(everything) - set(known)):
        raise RequestError(f"Beam does not know --{', --'.join(unknown)}: see `--help` of your runner's options")
    standard = options.view_as(StandardOptions)
    if standard.runner is None or standard.runner == "DirectRunner":
        standard.runner = IN_PROCESS_RUNNER
    return options


def works_here(options: PipelineOptions) -> bool:
    """Whether a pipeline's steps run on this machine, with its packages and its environment."""
    return runner_faults.is_in_process(options) or options.view_as(PortableOptions).environment_type == "LOOPBACK"


@contextlib.contextmanager
def local_shuffle(options: PipelineOptions, url: str) -> Iterator[None]:
    """Has the local runner's shuffles go through files while a pipeline runs; other runners have their own.

    Args:
        url: where they go, if that is on a local disk and the options don't say otherwise; nobody else's.

    Raises:
        RequestError: the options name a folder for shuffles, and another runner.
        MillError: the folder can't be made, or isn't this user's alone.
    """
    chosen = options.view_as(LocalShuffleOptions)
    if not runner_faults.is_in_process(options):
        if chosen.local_shuffle_folder:
            name = options.view_as(StandardOptions).runner
            raise RequestError(
                f"--local_shuffle_folder={chosen.local_shuffle_folder}: {name} has shuffles of its own; leave it out"
            )
        yield
        return
    if chosen.local_shuffle_folder == "":
        yield
        return
    fs, path = storage.filesystem(url)
    if chosen.local_shuffle_folder is None and isinstance(fs, LocalFileSystem):
        own = Path(path)
    else:
        base = Path(chosen.local_shuffle_folder) if chosen.local_shuffle_folder else None
        own = private_folder(base) / f"shuffle-{content_id(url)[:16]}"
    # What a run that was killed has left. One that is still at work, and should have stopped, notices.
    shutil.rmtree(own, ignore_errors=True)
    folder = fresh_folder(fresh_folder(own) / token_hex(8))  # a link in its place is not followed
    before, chosen.local_shuffle_folder = chosen.local_shuffle_folder, str(folder)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            own.rmdir()
        chosen.local_shuffle_folder = before
