"""What the miniature is made from: the world, its documents, the tokenizer and the scorer, in one folder.

world.json   documents.jsonl   tokenizer/   scorer/   made.json, which says from what sizes, and comes last
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec

from pipelines.miniature.teacher import MORE, REMARKS
from pipelines.miniature.tokens import train_tokenizer
from pipelines.miniature.world import make_world, save_world, write_documents
from sharding.errors import RequestError
from sharding.storage.files import write_bytes

_CORPUS, _OTHER_DOCUMENTS = 1, 2
"""Seeds of the documents that are milled, and of those that the scorer was trained on."""

_TOKENIZER_DOCUMENTS, _CHAIN_COPIES, _REMARK_COPIES = 2000, 2, 20


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """How large a miniature is.

    Attributes:
        seed: of the world and of all that is written about it.
        people, cities, countries: in the world.
        documents: to mill, about 80 tokens each.
        scorer_tokens: that the scorer is trained on.
    """

    seed: int = 0
    people: int = 48
    cities: int = 12
    countries: int = 6
    documents: int = 3_000
    scorer_tokens: int = 700_000


TINY = Scale(people=16, cities=4, countries=2, documents=120, scorer_tokens=8_192)
"""Enough to see that the machinery runs, and nothing else."""


def make_inputs(folder: Path, scale: Scale) -> None:
    """Write the inputs, unless they are there.

    Raises:
        RequestError: inputs of another scale are there.
    """
    made = folder / "made.json"
    if made.is_file():
        if (found := msgspec.json.decode(made.read_bytes(), type=Scale)) != scale:
            raise RequestError(
                f"{folder} holds a miniature of other sizes ({found}): remove it, or name another output"
            )
        return
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was ended: nothing else has read it
    world = make_world(scale.seed, people=scale.people, cities=scale.cities, countries=scale.countries)
    save_world(world, str(folder / "world.json"))
    documents = list(write_documents(world, scale.documents, _seed(scale, _CORPUS)))
    lines = "".join(json.dumps(document) + "\n" for document in documents)
    write_bytes(str(folder / "documents.jsonl"), lines.encode())
    chains = [statement.chain for statement in world.statements.values()] * _CHAIN_COPIES
    texts = [document["text"] for document in documents[:_TOKENIZER_DOCUMENTS]]
    remarks = [remark + MORE for remark in REMARKS] * _REMARK_COPIES
    train_tokenizer([*texts, *chains, *remarks], folder / "tokenizer")
    from pipelines.miniature.scorer import train_scorer

    # As many as the tokens take: a document has at least 20.
    count = 1 + scale.scorer_tokens // 20
    other = write_documents(world, count, _seed(scale, _OTHER_DOCUMENTS), explained=True)
    train_scorer(
        (found["text"] for found in other),
        str(folder / "tokenizer"),
        folder / "scorer",
        tokens=scale.scorer_tokens,
        seed=scale.seed,
    )
    write_bytes(str(made), msgspec.json.encode(scale))


def _seed(scale: Scale, which: int) -> int:
    return scale.seed * 10 + which
