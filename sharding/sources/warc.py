"""WARC and WET files: each page of a crawl is a document, as datatrove takes it. Needs `thoughtmill[datatrove]`.

datatrove's `process_record` says which records are pages (HTML of responses, text of WET's conversions) and decodes
them. It leaves a page out in silence that it can't decode, and warcio, which takes the file apart, ends in silence
where a file is cut short; so both are asked for here, and a page is a document or in quarantine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

from sharding.errors import MillError
from sharding.records.types import Document, Quarantined
from sharding.sources.config import Source
from sharding.sources.documents import MAX_DETAIL, document_of, refuse, too_long
from sharding.sources.extras import absent
from sharding.sources.lines import open_text
from sharding.sources.places import first_line
from sharding.sources.units import ReadUnit

PAGES = ("text/html", "application/xhtml+xml")
_ENDS = (b"\r\n\r\n", b"\n\n")
"""What follows every record."""


def check(source: Source) -> None:
    """Refuse the format where its packages are absent.

    Raises:
        RequestError: names the extra.
    """
    _loaded(source)


def read(unit: ReadUnit, source: Source) -> Iterator[Document | Quarantined]:
    """The pages of a file, in its order. Their fields are those of datatrove: text, id, url and date.

    Raises:
        MillError: the file is cut short or damaged; names it and the record.
        RequestError: a package is absent, or the file is no WARC.
    """
    iterate, process_record, failures = _loaded(source)
    with open_text(unit.url, "warc", in_lines=False) as raw:
        stream = _Whole(raw)
        number, left = 0, 0
        try:
            for number, record in enumerate(iterate(stream, check_digests=True), start=1):
                found = _page(record, f"{unit.url}:{number}", source, process_record)
                if found is not None:
                    yield found
                record.raw_stream.read()
                left = getattr(record.raw_stream, "limit", 0)
                if left or record.rec_type is None:
                    break
        except failures as error:
            said = first_line(error)[:MAX_DETAIL]
            raise MillError(f"cannot read {unit.url}: it is damaged after record {number}: {said}") from error
    if left or not stream.last.endswith(_ENDS):
        raise MillError(f"cannot read {unit.url}: it is cut short in or after record {number}: fetch it again")


def _page(record: Any, origin: str, source: Source, process_record: Any) -> Document | Quarantined | None:
    """A record as a document or in quarantine; None of one that is no page."""
    headers = record.rec_headers
    if record.rec_type not in ("response", "conversion"):
        return None
    size = headers.get_header("Content-Length") or ""
    if size.isdigit() and int(size) > source.config.max_document_bytes:
        return too_long(origin, source) if _is_page(record) else None
    found = process_record(record)
    checked = record.digest_checker.passed
    where = (headers.get_header("WARC-Target-URI") or "").encode()
    if found is None:
        # Of what isn't said to be a page datatrove looks at the content, and says no more than this.
        detail = f"datatrove gives no text of this page ({_type_of(record) or 'its type is not said'})"
        return refuse(origin, "undecodable", detail, where) if _is_page(record) else None
    if checked is False:
        return refuse(origin, "damaged", "its content is not what its digest says", where)
    return document_of(found, origin, source, found["text"].encode(errors="surrogatepass"))


def _type_of(record: Any) -> str:
    """The media type of a record, as the crawler found it or the server said."""
    said = record.rec_headers.get_header("WARC-Identified-Payload-Type")
    if said is None and record.http_headers is not None:
        said = record.http_headers.get_header("Content-Type")
    if said is None and record.rec_type == "conversion":
        said = record.rec_headers.get_header("Content-Type")
    return (said or "").partition(";")[0].strip().lower()


def _is_page(record: Any) -> bool:
    kind = _type_of(record)
    return kind in PAGES or (record.rec_type == "conversion" and kind == "text/plain")


class _Whole:
    """A stream to read from, whose end is an error where it comes too early, and whose last bytes are kept.

    warcio takes an EOFError, which is what a gzip file that is cut short ends in, for the end of the file.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        try:
            data = self._stream.read(size)
        except EOFError as error:
            raise OSError(str(error)) from error
        if data:
            self.last = (self.last + data)[-4:]
        return data


def _loaded(source: Source) -> tuple[Any, Any, tuple[type[Exception], ...]]:
    """(what takes a file apart, what makes a record a page, what the first raises)."""
    try:
        import cchardet  # noqa: F401  these two are asked for with the first page
        import magic  # noqa: F401
        from datatrove.pipeline.readers.warc import process_record
        from warcio.archiveiterator import ArchiveIterator
        from warcio.exceptions import ArchiveLoadFailed
    except ImportError as error:
        raise absent(source, first_line(error)) from error
    return ArchiveIterator, process_record, (ArchiveLoadFailed, UnicodeError, ValueError)
