"""The files of a source and the pieces that workers read: the first step of the flow, from names and sizes alone.

A file larger than `UNIT_BYTES` is read in byte ranges by different workers, each of which takes the records that begin
in its range: lines in JSON lines and text, row groups in Parquet, record batches in Arrow files. Nothing is opened to
cut it. Compressed lines, text files that are one document, and Arrow streams can't be entered in the middle.
"""

from __future__ import annotations

import posixpath
import zlib
from collections.abc import Iterator, Sequence

import msgspec

from sharding.hashing import fingerprint
from sharding.sources.config import FORMATS, SourceConfig
from sharding.sources.places import name_of

UNIT_BYTES = 64 << 20
"""A file is read in ranges of this size by different workers."""

CHUNK_FILES = 2_000
"""So many files travel to the workers together: a listing compresses well, and the job's description stays small."""

COMPRESSIONS = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd"}

TEXT_PER_BYTE = {"parquet": 4, "gzip": 4, "zstd": 4}
"""What a compressed byte is taken to hold of text when the size of a corpus is estimated."""


class SourceFile(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """One file of a source.

    Attributes:
        url: the file; the id or folder of a dataset for its shards.
        size_bytes: its length; about its share of the text for the shard of a dataset.
        version: changes when the content does: see `sharding.sources.versions`.
        shard: the number of the shard of a dataset, None for a file.
        compression: of the whole file, as its first bytes tell; None where they tell none, or nobody looked.
        seen: what the store said of it when it was listed, by which a change while it is read is noticed.
    """

    url: str
    size_bytes: int
    version: str
    shard: int | None = None
    compression: str | None = None
    seen: str = ""


class ReadUnit(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """A piece of a source that one worker reads.

    Attributes:
        url: the file, or the id or folder of a dataset.
        start, end: the byte range whose records are meant: those that begin in [start, end); None for the whole file.
        shard: the number of the shard of a dataset, None for a file.
        source: which of several sources.
        version: what the store said of the file when it was listed; "" where it is nobody's business.
    """

    url: str
    start: int = 0
    end: int | None = None
    shard: int | None = None
    source: int = 0
    version: str = ""


def compression_of(url: str) -> str | None:
    """The compression a file name tells of, as Arrow calls it."""
    return COMPRESSIONS.get(posixpath.splitext(name_of(url))[1].lower())


def _compression(file: SourceFile) -> str | None:
    return file.compression or compression_of(file.url)


def is_compressed(file: SourceFile) -> bool:
    """Whether a file is compressed as a whole."""
    return _compression(file) is not None


def text_bytes(files: Sequence[SourceFile], config: SourceConfig) -> int:
    """About how many bytes of text the files hold."""
    ratio = TEXT_PER_BYTE.get(config.format or "", 1)
    return sum(file.size_bytes * TEXT_PER_BYTE.get(_compression(file) or "", ratio) for file in files)


def is_read_whole(file: SourceFile, config: SourceConfig) -> bool:
    """Whether one worker has to read all of the file, because it can't be entered in the middle."""
    assert config.format is not None  # `resolve` has seen to it
    kind = FORMATS[config.format]
    is_one_document = config.format == "text" and config.document in (None, "file")
    in_packed_lines = kind.in_lines and is_compressed(file)
    return file.shard is not None or not kind.in_ranges or is_one_document or in_packed_lines


def units_of(file: SourceFile, config: SourceConfig, source: int = 0) -> Iterator[ReadUnit]:
    """The pieces of one file, in order; together they are the file."""
    if file.size_bytes <= UNIT_BYTES or is_read_whole(file, config):
        # What is empty is no file of a format that has a schema; it was told at the listing.
        end = 0 if not file.size_bytes and FORMATS[config.format or ""].has_schema else None
        yield ReadUnit(url=file.url, end=end, shard=file.shard, source=source, version=file.seen)
    else:
        for start in range(0, file.size_bytes, UNIT_BYTES):
            yield ReadUnit(url=file.url, start=start, end=start + UNIT_BYTES, source=source, version=file.seen)


def pack_listing(files: Sequence[SourceFile], source: int) -> list[bytes]:
    """A listing as a few compressed pieces, for its way to the workers that cut it into units."""
    return [
        zlib.compress(msgspec.msgpack.encode((source, files[first : first + CHUNK_FILES])))
        for first in range(0, len(files), CHUNK_FILES)
    ]


_listing_decoder = msgspec.msgpack.Decoder(tuple[int, list[SourceFile]])


def unpack_listing(piece: bytes) -> tuple[int, list[SourceFile]]:
    """The source and the files that `pack_listing` packed."""
    return _listing_decoder.decode(zlib.decompress(piece))


def listing_digest(listings: Sequence[Sequence[SourceFile]]) -> str:
    """A hash of what the sources hold, as far as the stores tell: 32 hex digits."""
    return fingerprint(
        f"{number} {file.url} {file.shard} {file.version}\n" for number, files in enumerate(listings) for file in files
    )
