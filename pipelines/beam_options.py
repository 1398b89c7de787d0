"""Beam options from the words after `--` on the command line."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from sharding.errors import RequestError

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
