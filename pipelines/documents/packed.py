"""A document from the shards alone, for a person and for machines. `thoughtmill show OUTPUT DOC_ID`.

Unlike `inspect`, which needs the stages' folders and knows nats and candidates, this works on any copy of the corpus.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec
from rich.console import Group, RenderableType
from rich.text import Text

from pipelines.documents.blocks import Mark
from pipelines.documents.runs import runs_of
from pipelines.documents.terminal import heading, mark, thought_box
from pipelines.terminal import counted, visible
from sharding.models.tokenizer import TextTokenizer, load_tokenizer
from sharding.packing.config import config_of
from sharding.packing.documents import PackedDocument, read_document
from sharding.packing.laying_out import encode_delimiters
from sharding.packing.layout import Delimiters
from sharding.records.rows import TokenType
from sharding.storage import manifest


class ShownDocument:
    """A document of a corpus with what its tokens spell.

    Args:
        output: the run's output folder, or a copy of its corpus.
        doc_id: the document.

    Raises:
        RequestError: there is none of this id; names some that are like it.
        MillError: the output isn't finished, has no index, or is damaged; or its tokenizer isn't to be had.
    """

    def __init__(self, output: str | os.PathLike[str], doc_id: str) -> None:
        self.document: PackedDocument = read_document(output, doc_id)
        packed = manifest.require(output, "pack")
        self._tokenizer: TextTokenizer = load_tokenizer(packed.config["tokenizer"])
        self._delimiters: Delimiters = encode_delimiters(config_of(packed), self._tokenizer)

    def to_json(self) -> dict[str, Any]:
        """The document as JSON values: its text, its thoughts with their place in it, and where it is."""
        found, decode = self.document, self._tokenizer.decode
        source = found.source_ids
        return {
            "doc_id": found.doc_id,
            "split": found.split,
            "copies": found.copies,
            "whole": not found.gaps,
            "source_tokens": len(source),
            "text": decode(source),
            "thoughts": [
                {"source_tokens_before": place, "tokens": len(ids), "text": decode(ids)}
                for place, ids in found.thoughts
            ],
            "places": [msgspec.structs.asdict(place) for place in found.places],
        }

    def render(self, *, plain: bool) -> RenderableType:
        """The document as it stands in the corpus, thoughts in their place."""
        found, decode = self.document, self._tokenizer.decode
        thoughts = found.thoughts
        facts = f"{counted(len(found.source_ids), 'token')}, {counted(len(thoughts), 'thought')}, {found.split}"
        parts: list[RenderableType] = [heading(found.doc_id, facts, plain)]
        first = found.places[0]
        parts.append(Text(f"{first.shard}, row {first.row}, token {first.token_start}", "" if plain else "dim"))
        for said in self._odd():
            parts.append(Text(said, "" if plain else "yellow"))
        before, after = decode(self._delimiters.thought_open), decode(self._delimiters.thought_close)
        number = end = 0
        for item in found.items:
            if number or end:
                missing = item.source_start - end
                parts.append(
                    mark(Mark("cut"), plain) if not missing else Text(f"--- {missing:,} tokens are left out ---")
                )
            end = item.source_start
            for kind, ids in runs_of(item, self._delimiters):
                text = decode(ids)
                if kind == TokenType.DELIMITER:
                    parts.append(mark(Mark("end", text), plain))
                elif kind == TokenType.THOUGHT:
                    number += 1
                    title = f"thought {number}, behind {end:,} tokens"
                    parts.append(thought_box(title, before, text, after, plain))
                else:
                    end += len(ids)
                    parts.append(Text(visible(text)))
        return Group(*parts)

    def _odd(self) -> list[str]:
        """What is out of the ordinary about it, in words."""
        said = [f"{self.document.copies} times in the corpus"] if self.document.copies > 1 else []
        return said + ["not whole: sequences with some of it were left out (pack.max_rows)"] * self.document.gaps
