"""Sources that have only grown: stages are made again without being told to, as nothing is lost by it.

That an output made from other inputs is refused without `--replace` protects what is there: shards that were made from
another corpus, or in another way. Where documents were only added, and every later stage that is done was made from
this very config, what comes is what was there and more; scores and generations are used again. What has been made of
the corpus as it was, and is not made again with it, stays a reason to ask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pipelines.deliveries_begun import refuse_delivered
from pipelines.stage import Stage
from pipelines.terminal import counted
from sharding import sources, storage
from sharding.errors import MillError, RequestError, restated
from sharding.storage import manifest
from sharding.storage.output import Output


def grown_from(stage: Stage, later: Mapping[str, Callable[[], Stage]], say: Callable[[str], None]) -> str | None:
    """The fingerprint of a stage's earlier result whose sources have only grown since; None where there is none.

    Args:
        stage: as it is to be made.
        later: name → how the stage is made, of those after it in their order.
        say: is told what has come, in one line.

    Raises:
        RequestError: they have grown, and something else that is there would be lost or no longer true.
        MillError: it couldn't be found out.
    """
    found = manifest.read(stage.output, stage.name, any_format=True)
    if found is None or found.format != manifest.FORMAT or found.fingerprint == stage.fingerprint:
        return None
    if (growth := stage.growth(found)) is None:
        return None
    for name, make in later.items():
        if manifest.read(stage.output, name, any_format=True) is None:
            break
        _refuse_another(name, make)
    _refuse_what_stays(stage.output)
    say(_said(growth))
    return found.fingerprint


def _refuse_another(name: str, make: Callable[[], Stage]) -> None:
    """Refuse an output whose stage of this name was made from another config."""
    try:
        later = make()
    except MillError as error:
        raise restated(
            error,
            f"output: the sources have grown, and whether the stage {name} that is there was made from this config "
            f"can't be told here: {error}; --replace makes it again whatever it was made from",
        ) from error
    later.refuse_another()


def _refuse_what_stays(output: str) -> None:
    """Refuse an output with something in it that was made of the corpus, and isn't made again with it."""
    refuse_delivered(output)
    at = Output(output)
    made = {"control arms": at.arms, "an ablation": at.ablation, "a signature": at.signature}
    made["a record of provenance"] = at.provenance_manifest
    if there := [f"{name} ({url})" for name, url in made.items() if storage.exists(url)]:
        raise RequestError(
            f"output: the sources have grown, and {output} holds {' and '.join(there)} of the corpus as it was: add "
            "--replace to mill the corpus again and leave them as they are, or name another output"
        )


def _said(growth: sources.Growth) -> str:
    pieces = [
        *([f"{counted(growth.files_added, 'file')} more"] if growth.files_added else []),
        *([f"{counted(growth.files_longer, 'file')} longer"] if growth.files_longer else []),
    ]
    return (
        f"the sources have grown ({', '.join(pieces)}): the stages are made again, and what was scored and generated "
        "is used again"
    )
