"""The dataset card: README.md of the output, made from the manifests alone. The last thing the pack stage writes.

four manifests ─┬─► front_matter: YAML for the hub and for `datasets`
                ├─► making, using: what a trainer needs to know, in Markdown
                └─► croissant: the same for machines, croissant.json beside it
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import msgspec

from pipelines.card import croissant, making, using
from pipelines.card.front_matter import front_matter, size_category, splits
from pipelines.card.making import amount, forecast
from pipelines.card.markdown import redacted
from pipelines.card.using import REHEARSAL_NOTICE
from sharding import storage
from sharding.storage.manifest import Manifest

__all__ = ["REHEARSAL_NOTICE", "amount", "forecast", "redacted", "render", "size_category", "splits", "write"]

CARD_NAME = "README.md"

ABOUT = (
    "A pretraining corpus in which hard passages are followed by generated reasoning about them. Made with "
    "thoughtmill: every token of the source was scored for difficulty, one thinking budget was spent where the "
    "difficulty is, and the traces that passed the gates stand with their documents."
)


def write(output: str, stages: Mapping[str, Manifest]) -> None:
    """Write the card and the Croissant description into the output.

    Raises:
        MillError: the store refused.
    """
    storage.write_bytes(storage.join(output, CARD_NAME), render(stages).encode())
    stored = {name: _as_stored(stage) for name, stage in stages.items()}
    described = json.dumps(croissant.describe(stored, ABOUT), indent=2, ensure_ascii=False) + "\n"
    storage.write_bytes(storage.join(output, croissant.CROISSANT_NAME), redacted(described).encode())


def render(stages: Mapping[str, Manifest]) -> str:
    """The card of a run whose four manifests are given: YAML for the hub, then what a trainer needs to know."""
    stages = {name: _as_stored(stage) for name, stage in stages.items()}
    packed = stages["pack"]
    sections = [
        f"# {packed.config['card']['name']}",
        using.notice(packed),
        ABOUT,
        using.numbers(stages),
        making.sources(stages["score"]),
        making.difficulty(stages["score"]),
        making.generation(stages["augment"]),
        making.selection(stages["select"]),
        making.decontamination(stages["select"]),
        using.packing(packed),
        using.columns(packed),
        using.loading(packed),
        using.limits(stages),
        using.reproduce(stages),
    ]
    body = "\n\n".join(section for section in sections if section) + "\n"
    return redacted(f"---\n{front_matter(packed)}---\n\n{body}")


def _as_stored(stage: Manifest) -> Manifest:
    """The manifest with its keys in the order of the file, so that the card doesn't depend on who holds it."""
    return msgspec.json.decode(msgspec.json.encode(stage, order="sorted"), type=Manifest)
