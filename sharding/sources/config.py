"""What a source is: the `source` section of the config, or one entry of `sources`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from sharding.config import STRICT


@dataclasses.dataclass(frozen=True, kw_only=True)
class FormatKind:
    """A format that a source can have; its reader is the module of its name: see `sharding.sources.readers`.

    Attributes:
        endings: of its files' names, in front of that of a compression.
        has_fields: a record has named fields; else it is a text and no more.
        in_lines: the file is lines, which may be compressed.
        in_ranges: the reader takes byte ranges of a large file, and of each the records that begin in it.
        has_schema: the file says which columns it has.
        by_datatrove: datatrove reads it; its module's `check` tells before any work whether it can.
    """

    endings: tuple[str, ...] = ()
    has_fields: bool = True
    in_lines: bool = False
    in_ranges: bool = False
    has_schema: bool = False
    by_datatrove: bool = False


FORMATS = {
    "jsonl": FormatKind(endings=(".jsonl", ".ndjson"), in_lines=True, in_ranges=True),
    "parquet": FormatKind(endings=(".parquet", ".pq"), has_schema=True, in_ranges=True),
    "arrow": FormatKind(endings=(".arrow", ".arrows", ".feather", ".ipc"), has_schema=True, in_ranges=True),
    "text": FormatKind(endings=(".txt", ".text", ".md"), has_fields=False, in_lines=True, in_ranges=True),
    "warc": FormatKind(endings=(".warc", ".wet"), by_datatrove=True),
    "datatrove": FormatKind(by_datatrove=True),
    "huggingface": FormatKind(),
}
"""The formats by the names they have in a config."""

if TYPE_CHECKING:
    Format = str
else:
    Format = Literal[tuple(FORMATS)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SourceConfig:
    """Where raw text is and how a record holds it."""

    name: str = Field(
        default="",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$",
        description="Name of the source, carried with every document; each of several sources needs one.",
    )
    format: Format | None = Field(
        default=None,
        description="jsonl, parquet, arrow, text, warc, datatrove or huggingface; null: by the files' first bytes and "
        "endings. jsonl, text and warc may be plain, or compressed by gzip or zstd.",
    )
    path: str = Field(
        min_length=1,
        description="A file, folder or glob in any fsspec store; for huggingface a hub id or the folder of a dataset.",
    )
    subset: str | None = Field(default=None, description="huggingface: the dataset's configuration.")
    split: str | None = Field(default=None, description="huggingface: the split; null: train.")
    revision: str | None = Field(default=None, description="huggingface: branch, tag or commit on the hub; null: main.")
    reader: str | None = Field(default=None, description="datatrove: the name of its reader, such as CSVReader.")
    options: dict[str, Any] = Field(
        default_factory=dict, description="datatrove: options of its reader, such as {compression: gzip}."
    )
    text_field: str = Field(default="text", min_length=1, description="The field that holds the text.")
    id_field: str | None = Field(
        default=None, description="The field that holds a document's id; without one the id is a hash of the text."
    )
    metadata_fields: tuple[str, ...] = Field(default=(), description="Fields carried through to the scored parts.")
    document: Literal["file", "paragraph", "line"] | None = Field(
        default=None,
        description="text: what one document is; paragraphs end at blank lines; null: the file.",
    )
    max_document_bytes: int = Field(
        default=64 << 20, gt=0, description="A longer record is quarantined; bounds a worker's memory, in bytes."
    )
    max_quarantined: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="The share of the source's files, and of its records, that may come to nothing; more is an error.",
    )


_WITH_FIELDS = tuple(name for name, kind in FORMATS.items() if kind.has_fields)

ONLY_FOR: dict[str, tuple[Format, ...]] = {
    "subset": ("huggingface",),
    "split": ("huggingface",),
    "revision": ("huggingface",),
    "reader": ("datatrove",),
    "options": ("datatrove",),
    "document": ("text",),
    "text_field": _WITH_FIELDS,
    "id_field": _WITH_FIELDS,
    "metadata_fields": _WITH_FIELDS,
}
"""The keys that not every format knows."""

_DEFAULTS = SourceConfig(path="-")
_NAMED_ONLY = (("huggingface",), ("datatrove",))


def misplaced_key(config: SourceConfig) -> str | None:
    """What is wrong with a source that sets a key its format doesn't know, as "key: why"; None when all is well.

    A format that is still to be found by the files' endings may turn out to be any but huggingface and datatrove.
    """
    for field in dataclasses.fields(config):
        formats = ONLY_FOR.get(field.name)
        value = getattr(config, field.name)
        if formats is None or value == getattr(_DEFAULTS, field.name):
            continue
        if (config.format or "") not in formats and (config.format is not None or formats in _NAMED_ONLY):
            shown = list(value) if isinstance(value, tuple) else value
            is_format = "is not given" if config.format is None else f"is {config.format}"
            return f"{field.name}: {shown!r} needs the format {' or '.join(formats)}, and the format {is_format}"
    return None


@dataclasses.dataclass(frozen=True)
class Source:
    """A source and where it stands in the config, so that an error names the key.

    Attributes:
        key: "source", or "sources.1" for the second of several.
    """

    key: str
    config: SourceConfig
