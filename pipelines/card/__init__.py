"""The dataset card: README.md of the output, made from the manifests alone. The last thing the pack stage writes.

Where students were trained on the corpus, `ablation.json` has a section in it.

four manifests ─┬─► front_matter: YAML for the hub and for `datasets`
                ├─► facts ─► template/card.md.j2: what a trainer needs to know, in Markdown
                └─► croissant: the same for machines, croissant.json beside it
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import msgspec

from pipelines.ablation import result
from pipelines.ablation.result import Ablation
from pipelines.card import croissant
from pipelines.card.facts import ABOUT, facts_of
from pipelines.card.front_matter import front_matter
from pipelines.card.markdown import listing, table
from pipelines.delivered import whole_stages
from pipelines.secrets import published
from sharding import storage
from sharding.storage.manifest import Manifest
from sharding.storage.output import Output


def write(output: str, stages: Mapping[str, Manifest]) -> None:
    """Write the card and the Croissant description into the output.

    Args:
        stages: the four manifests; what was delivered later is counted in.

    Raises:
        MillError: the store refused, or a manifest of a delivery is missing.
    """
    stages = whole_stages(output, stages)
    storage.write_bytes(Output(output).card, render(stages, result.of_corpus(output, stages)).encode())
    told = {name: published(_as_stored(stage)) for name, stage in stages.items()}
    described = json.dumps(croissant.describe(told, ABOUT), indent=2, ensure_ascii=False) + "\n"
    storage.write_bytes(Output(output).croissant, described.encode())


def render(stages: Mapping[str, Manifest], ablation: Ablation | None = None) -> str:
    """The card of a run whose four manifests are given: YAML for the hub, then what a trainer needs to know."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    stages = {name: published(_as_stored(stage)) for name, stage in stages.items()}
    # Markdown, not HTML: cells are escaped by `table`.
    environment = Environment(
        loader=PackageLoader("pipelines.card", "template"),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"table": table, "listing": listing, "commas": "{:,}".format}
    text = environment.get_template("card.md.j2").render(facts_of(stages, ablation))
    body = re.sub(r"\n{3,}", "\n\n", text).strip()  # where a paragraph has nothing to say
    return f"---\n{front_matter(stages['pack'])}---\n\n{body}\n"


def _as_stored(stage: Manifest) -> Manifest:
    """The manifest with its keys in the order of the file, so that the card doesn't depend on who holds it."""
    return msgspec.json.decode(msgspec.json.encode(stage, order="sorted"), type=Manifest)
