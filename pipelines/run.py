"""The whole flow: score, augment, select, pack. `mill` is also the API for Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipelines.config import MillConfig
from sharding.storage.manifest import STAGES, Manifest


def mill(
    config: MillConfig,
    *,
    stages: Sequence[str] = STAGES,
    beam_args: Sequence[str] = (),
    replace: bool = False,
    on_stage: Callable[[str, Manifest | None, bool], None] = lambda stage, manifest, ran: None,
) -> dict[str, Manifest]:
    """Run stages in order, skipping those that are done.

    Args:
        config: the run.
        stages: which of `STAGES`; each needs the results of those before it.
        beam_args: Beam options, such as "--runner=...".
        replace: make stages again that another config has made in this output.
        on_stage: called with (stage, None, True) before a stage and (stage, its manifest, whether it ran) after it.

    Returns:
        The manifest of each stage asked for.

    Raises:
        RequestError: the request was wrong.
        MillError: a stage failed.
    """
    # Imported here: Beam takes a second, and `--help` and `verify` do without.
    from pipelines.augment import augment
    from pipelines.borrowed_scores import borrow_scores
    from pipelines.pack import pack
    from pipelines.score import score
    from pipelines.select import select

    scores = score if config.scored is None else borrow_scores
    functions = {"score": scores, "augment": augment, "select": select, "pack": pack}
    manifests = {}
    for stage in stages:
        on_stage(stage, None, True)
        manifests[stage], ran = functions[stage](config, beam_args=beam_args, replace=replace)
        on_stage(stage, manifests[stage], ran)
    return manifests
