"""What a file is by its first bytes: what its name says is one guess, and what is in it decides. Pure.

Compressions are read whatever the name; what can be no source of the format is refused by name with the way out, before
its headers become training documents.
"""

from __future__ import annotations

import codecs
import io
import re
import zlib
from typing import NamedTuple

import pyarrow as pa

from sharding.sources.places import name_of

HEAD_BYTES = 4096
"""So much of a file is looked at."""

MAX_WRAPPINGS = 3
"""A file compressed more often than that is no honest one."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18", re.DOTALL)


class Kind(NamedTuple):
    """What a file is that no reader of lines can take.

    Attributes:
        name: of the format or kind.
        what: in words, after "is".
        way_out: what to do; "{url}" stands for the file.
    """

    name: str
    what: str
    way_out: str


_TEXT_OF_IT = "extract its text first"
_RECOMPRESS = "recompress it as .gz or .zst"
_UNPACK = "unpack it"
_MAGIC: tuple[tuple[bytes, Kind], ...] = (
    (b"PK\x03\x04", Kind("zip", "a zip archive", "unpack it, or name what is in it: zip://**::{url}")),
    (b"PK\x05\x06", Kind("zip", "an empty zip archive", "leave it out")),
    (b"7z\xbc\xaf\x27\x1c", Kind("7z", "a 7z archive", _UNPACK)),
    (b"Rar!\x1a\x07", Kind("rar", "a RAR archive", _UNPACK)),
    (b"\xfd7zXZ\x00", Kind("xz", "compressed by xz", _RECOMPRESS)),
    (b"\x04\x22\x4d\x18", Kind("lz4", "compressed by lz4", _RECOMPRESS)),
    (b"\x02\x21\x4c\x18", Kind("lz4", "compressed by lz4", _RECOMPRESS)),
    (b"\xff\x06\x00\x00sNaPpY", Kind("snappy", "compressed by snappy", _RECOMPRESS)),
    (b"LZIP\x01", Kind("lzip", "compressed by lzip", _RECOMPRESS)),
    (b"\x1f\x9d", Kind("compress", "compressed by compress (.Z)", _RECOMPRESS)),
    (b"ARROW1\x00\x00", Kind("arrow", "an Arrow file", "set format: arrow")),
    (b"FEA1", Kind("feather", "a Feather file of version 1", "write it anew with pyarrow.feather.write_feather")),
    (b"\x5d\x00\x00", Kind("lzma", "compressed by lzma", _RECOMPRESS)),
    (b"070701", Kind("cpio", "a cpio archive", _UNPACK)),
    (b"070702", Kind("cpio", "a cpio archive", _UNPACK)),
    (b"!<arch>\n", Kind("ar", "an ar archive", _UNPACK)),
    (b"Obj\x01", Kind("avro", "an Avro file", "write it as Parquet or JSON lines")),
    (b"WARC/1.", Kind("warc", "a WARC file", "set format: warc, or take the text of it first")),
    (b"%PDF-", Kind("pdf", "a PDF file", _TEXT_OF_IT)),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", Kind("ole", "an old Office file", _TEXT_OF_IT)),
    (b"{\\rtf1", Kind("rtf", "an RTF file", _TEXT_OF_IT)),
    (b"SQLite format 3\x00", Kind("sqlite", "an SQLite database", "write its rows as Parquet or JSON lines")),
    (b"\x89HDF\r\n\x1a\n", Kind("hdf5", "an HDF5 file", "write its rows as Parquet or JSON lines")),
    (b"\x93NUMPY", Kind("numpy", "a NumPy file", "it holds no text: leave it out")),
    (b"\x89PNG\r\n\x1a\n", Kind("image", "an image", "leave it out")),
    (b"\xff\xd8\xff", Kind("image", "an image", "leave it out")),
    (b"GIF8", Kind("image", "an image", "leave it out")),
    (b"\x7fELF", Kind("elf", "a program", "leave it out")),
)

_POINTERS: tuple[tuple[bytes, Kind], ...] = (
    (
        b"version https://git-lfs.github.com/spec/",
        Kind("pointer", "a Git LFS pointer, not the file", "fetch the file: git lfs pull"),
    ),
    (
        b"version https://hawser.github.com/spec/",
        Kind("pointer", "a Git LFS pointer, not the file", "fetch the file: git lfs pull"),
    ),
    (b"/annex/objects/", Kind("pointer", "a git-annex pointer, not the file", "fetch the file: git annex get")),
    (b"# xet version ", Kind("pointer", "a Xet pointer, not the file", "fetch the file: git xet, or hf download")),
)
_MAX_POINTER_BYTES = 1024

_WIDE_MARKS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_BEGINS_MARKUP = rb"^(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*"
_HTML = re.compile(
    _BEGINS_MARKUP + rb"<(?:!doctype\s+html|html|head|title|body|meta|script)\b", re.IGNORECASE | re.DOTALL
)
_XML = re.compile(rb"<\?xml\s", re.IGNORECASE)
_STORE_ERROR = re.compile(_BEGINS_MARKUP + rb"<error>\s*<code>", re.IGNORECASE | re.DOTALL)
_PAGE_WAY_OUT = (
    "if it is an error page, fetch the file again; else extract its text first, or, where the markup is meant, name it "
    ".html and set format: text"
)
_MIN_ZEROS, _BYTES_PER_ZERO = 8, 20
"""A text may hold a NUL or two; one of so many of them, and so close to each other, is none."""

MARKUP_ENDINGS = (".html", ".htm", ".xhtml", ".xml")


def compression_in(head: bytes) -> str | None:
    """The compression that the first bytes of a file tell, as Arrow calls it."""
    if head.startswith(GZIP):
        return "gzip"
    return "zstd" if head.startswith(_ZSTD) or _ZSTD_SKIPPABLE.match(head) else None


def unpacked(head: bytes) -> bytes:
    """The first bytes of what is in a compressed file, as far as its own tell; none where they don't."""
    for _ in range(MAX_WRAPPINGS):
        codec = compression_in(head)
        if codec is None:
            break
        try:
            if codec == "gzip":
                head = zlib.decompressobj(wbits=31).decompress(head, HEAD_BYTES)
            else:
                head = pa.CompressedInputStream(io.BytesIO(head), codec).read(HEAD_BYTES)
        except (zlib.error, OSError):
            return b""
    return head


def kind_of(head: bytes) -> Kind | None:
    """What else than lines of UTF-8 a file is that begins like this; None where nothing speaks against them."""
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head.startswith(b"BZh") and head[4:10] == b"\x31\x41\x59\x26\x53\x59":
        return Kind("bz2", "compressed by bzip2", _RECOMPRESS)
    if head.startswith((b"PAR1", b"PARE")) and any(byte < 9 for byte in head[4:64]):
        encrypted = head.startswith(b"PARE")
        what = "an encrypted Parquet file" if encrypted else "a Parquet file"
        return Kind("parquet", what, "write it without encryption" if encrypted else "set format: parquet")
    if head.startswith(b"\xff\xff\xff\xff") and 0 < int.from_bytes(head[4:8], "little") < 1 << 24:
        return Kind("arrow", "an Arrow stream", "set format: arrow")
    if _is_tar(head):
        return Kind("tar", "a tar archive", _UNPACK)
    text = head.removeprefix(BYTE_ORDER_MARK).lstrip()
    if len(head) < _MAX_POINTER_BYTES:
        for begin, kind in _POINTERS:
            if text.startswith(begin):
                return kind
    if encoding := _wide_encoding(head):
        return Kind("wide", f"{encoding[:6]}, not UTF-8", f"convert it: iconv -f {encoding} -t UTF-8")
    if head.count(0) >= _MIN_ZEROS and head.count(0) * _BYTES_PER_ZERO > len(head):
        return Kind("binary", f"no text: of its first {len(head):,} bytes {head.count(0):,} are zero", "leave it out")
    if _HTML.match(text):
        return Kind("markup", "an HTML page", _PAGE_WAY_OUT)
    if _STORE_ERROR.match(text):
        return Kind("markup", "the error answer of a store", "fetch the file again")
    if _XML.match(text):
        return Kind("markup", "an XML document", _PAGE_WAY_OUT)
    return None


def refusal(kind: Kind | None, url: str, format: str) -> str | None:
    """Why a file can't be read as a format, with the way out; None where its first bytes don't speak against it.

    Args:
        kind: what it is: see `kind_of`.
        url: the file.
        format: the name of the format.
    """
    if kind is None or kind.name == format or format == "datatrove":
        return None
    if kind.name == "binary" and format == "jsonl":
        return None  # each line tells by itself
    if kind.name == "markup" and format == "text" and name_of(url).lower().endswith(MARKUP_ENDINGS):
        return None
    return f"{url} is {kind.what}: {kind.way_out.format(url=url)}"


def begins_utf8(head: bytes) -> bool:
    """Whether bytes that begin a file are UTF-8, as far as they go."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def _is_tar(head: bytes) -> bool:
    if len(head) < 512 or not head[0]:
        return False
    if head[257:262] == b"ustar":
        return True
    # Before POSIX a header had no magic, but its sum.
    said = head[148:156].strip(b" \0")
    if not re.fullmatch(rb"[0-7]{1,7}", said):
        return False
    return sum(head[:148]) + sum(head[156:512]) + 8 * ord(" ") == int(said, 8)


def _wide_encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32 where a byte order mark or the places of the NULs tell it."""
    for mark, encoding in _WIDE_MARKS:
        if head.startswith(mark):
            return encoding
    if head.count(0) < 2 or len(head) < 8 or compression_in(head) is not None:
        return None
    for order, encoding in (("utf-16-le", "UTF-16LE"), ("utf-16-be", "UTF-16BE")):
        if _is_wide_text(head, order):
            return encoding
    if head.count(0) * 4 < len(head):
        return None
    zeros = [head[lane::4].count(0) / len(head[lane::4]) for lane in range(4)]
    for encoding, lanes in (("UTF-32LE", (2, 3)), ("UTF-32BE", (0, 1)), ("UTF-16LE", (1, 3)), ("UTF-16BE", (0, 2))):
        others = [zeros[lane] for lane in range(4) if lane not in lanes]
        if min(zeros[lane] for lane in lanes) > 0.4 and min(others) < 0.1:
            return encoding
    return None


def _is_wide_text(head: bytes, encoding: str) -> bool:
    """Whether bytes that hold NULs are text in UTF-16, as other scripts' is: only their spaces and digits hold one."""
    high = head[1 if encoding == "utf-16-le" else 0 :: 2]
    # The letters of a script share a high byte; where that is a control character, they are valid UTF-8 as well.
    if begins_utf8(head) and max(high.count(byte) for byte in range(1, 32)) * 2 < len(high):
        return False
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return False
    return "".join(text.split()).isprintable() and (" " in text or "\n" in text)
