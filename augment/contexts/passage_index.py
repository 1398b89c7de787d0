"""An index of passages by their words: built once for a corpus, shard by shard, and asked about hard spans.

It lies in an output, as described here, or in a search server: `augment.contexts.server_index` has what differs then.
tantivy ranks by BM25 (Robertson & Zaragoza, "The Probabilistic Relevance Framework", 2009; k1 = 1.2, b = 0.75). Each
shard is one file, an archive of what tantivy has written, which a process unpacks once and maps into memory. A shard
knows how rare a word is from its own passages alone, as in any search engine of several shards.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import tempfile
import threading
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Protocol

import msgspec

from augment.contexts.passages import Passage, document_term, rounded, runs_of, says_the_same, terms_of
from augment.contexts.server_index import AtServer, open_place
from augment.selection.words import words_of
from sharding.errors import MillError
from sharding.hashing import fingerprint
from sharding.search.config import SearchServerConfig
from sharding.storage.files import exists, filesystem, publish
from sharding.storage.json_files import read_json
from sharding.storage.private import fresh_folder, private_folder

INDEX_FORMAT = 1
"""Of passages and of what is kept of them; in the digest of every index."""

MOST_WORDS = 64
"""Of the hard spans so many different words are asked about, those of the hardest spans first."""

_HEAP_BYTES = 64 << 20
_FIRST_LOOK, _DEEPEST_LOOK = 32, 8192

_HexDigits = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{8,64}$")]
"""It names a folder, and is read from an output, which anyone may have written."""


class Shard(msgspec.Struct, frozen=True):
    """A shard of an index.

    Attributes:
        name: of its file, beside `index.json`.
        digest: of the passages in it; what an unpacked copy is known by.
        passages: how many there are.
    """

    name: Annotated[str, msgspec.Meta(pattern=r"^passages-[\w-]{1,80}\.zip$")]
    digest: _HexDigits
    passages: Annotated[int, msgspec.Meta(ge=0)]


class StoredIndex(msgspec.Struct, frozen=True, omit_defaults=True):
    """`index.json`, which is there when the index is whole.

    Attributes:
        digest: of the corpus that it was made from, and of how.
        shards: those that have a passage; none of an index in a search server.
        server: where in the server it is.
    """

    digest: _HexDigits
    shards: list[Shard]
    server: AtServer | None = None


def build_shard(url: str, passages: Iterable[Passage]) -> Shard:
    """Write a shard, whole or not at all.

    Args:
        url: where it goes.
        passages: in an order that doesn't change from run to run.

    Raises:
        MillError: the store refused, or tantivy isn't installed.
    """
    tantivy = _tantivy()
    number, seen = 0, []
    with tempfile.TemporaryDirectory(dir=private_folder(), prefix="passages-") as folder:
        index = tantivy.Index(_schema(tantivy), path=folder)
        writer = index.writer(heap_size=_HEAP_BYTES, num_threads=1)  # one: the same order in every build
        for passage in passages:
            document = tantivy.Document()
            document.add_text("words", " ".join(terms_of(words_of(passage.text))))
            document.add_text("document", document_term(passage.doc_id))
            document.add_bytes("passage", msgspec.msgpack.encode(passage))
            writer.add_document(document)
            seen.append(fingerprint([passage.doc_id, "\0", str(passage.number), "\0", passage.text]))
            number += 1
        writer.commit()
        writer.wait_merging_threads()
        with publish(url) as out, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(Path(folder).iterdir()):
                if not file.name.startswith(".tantivy"):  # its locks
                    archive.write(file, file.name)
    return Shard(url.rpartition("/")[2], fingerprint(seen), number)


class Place(Protocol):
    """A shard, or all of an index in a server."""

    def hits(self, words: Sequence[str], doc_id: str, depth: int) -> list[tuple[float, Passage]]:
        """(score, passage) of the first so many that are not of a document, the best first."""


class PassageIndex:
    """An index as processes ask it; get one from `load_index`.

    Args:
        places: where its passages are.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places

    def find(self, spans: Sequence[str], doc_id: str, own: frozenset[str], number: int) -> list[Passage]:
        """The passages that say most about hard spans, the best first; of equals the first by document and place.

        Nothing of the document itself is among them, and nothing that says what the document says, or what a better one
        says: near-copies are told by their runs of words (`passages.says_the_same`).

        Args:
            spans: the hardest first.
            own: `runs_of` the document's words.
            number: of passages wanted; fewer where no more have a word of the spans.
        """
        words = list(dict.fromkeys(terms_of(word for span in spans for word in words_of(span))))[:MOST_WORDS]
        found: list[Passage] = []
        said = [own]
        if words and number:
            for passage in self._ranked(words, doc_id):
                runs = runs_of(words_of(passage.text))
                if any(says_the_same(runs, other) for other in said):
                    continue
                found.append(passage)
                said.append(runs)
                if len(found) == number:
                    break
        return found

    def _ranked(self, words: Sequence[str], doc_id: str) -> Iterator[Passage]:
        """The passages with one of the words, in order; looked up in rounds, each deeper than the one before."""
        depth, told = _FIRST_LOOK, 0
        while True:
            hits: list[tuple[float, Passage]] = []
            sure_above = -1.0
            for place in self._places:
                of_shard = place.hits(words, doc_id, depth)
                hits += of_shard
                if len(of_shard) == depth < _DEEPEST_LOOK:
                    # What scores like the last one may go on behind it, and comes in an order of the shard's own.
                    sure_above = max(sure_above, of_shard[-1][0])
            sure = sorted((-score, passage) for score, passage in hits if score > sure_above)
            yield from (passage for _, passage in sure[told:])
            told = len(sure)
            if sure_above < 0:
                return
            depth *= 4


class _Place:
    """A shard that can be asked."""

    def __init__(self, folder: Path) -> None:
        self._tantivy = _tantivy()
        index = self._tantivy.Index.open(str(folder))
        self._schema, self._searcher = index.schema, index.searcher()

    def hits(self, words: Sequence[str], doc_id: str, depth: int) -> list[tuple[float, Passage]]:
        """(score, passage) of the first so many that are not of a document, the best first."""
        query, occur = self._tantivy.Query, self._tantivy.Occur
        clauses = [(occur.Should, query.term_query(self._schema, "words", word, index_option="freq")) for word in words]
        own = query.term_query(self._schema, "document", document_term(doc_id), index_option="basic")
        asked = query.boolean_query([*clauses, (occur.MustNot, own)])
        found = self._searcher.search(asked, limit=depth, count=False).hits
        return [(rounded(score), self._passage(address)) for score, address in found]

    def _passage(self, address: Any) -> Passage:
        stored = self._searcher.doc(address).get_first("passage")
        return Passage(*msgspec.msgpack.decode(bytes(stored), type=tuple[str, int, str]))


@lru_cache(maxsize=2)
def load_index(url: str, digest: str, server: SearchServerConfig | None = None) -> PassageIndex:
    """The index of this digest at `url`, unpacked once on a machine and loaded once in a process.

    Args:
        url: of its `index.json`.
        server: that keeps it; None: it lies beside that.

    Raises:
        MillError: it isn't there, is another one or can't be read.
    """
    stored = read_index(url)
    if stored is None or stored.digest != digest or (stored.server is None) != (server is None):
        raise MillError(f"{url} is not the index that this run has made: run `thoughtmill augment` again")
    if server is not None and stored.server is not None:
        return PassageIndex([open_place(server, stored.server)])
    folder = url.rpartition("/")[0]
    return PassageIndex([_opened(f"{folder}/{shard.name}", shard.digest) for shard in stored.shards])


def read_index(url: str) -> StoredIndex | None:
    """What an index says of itself; None where there is none.

    Raises:
        MillError: it can't be read.
    """
    return read_json(url, StoredIndex, "an index of passages") if exists(url) else None


def _opened(url: str, digest: str) -> _Place:
    """A shard; unpacked again where what was unpacked is no longer whole, as who tidies temporary files leaves it."""
    folder = _unpacked(url, digest)
    try:
        return _Place(folder)
    except (ValueError, OSError):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        return _Place(_unpacked(url, digest))
    except (ValueError, OSError) as error:
        raise MillError(f"{url} is no index that tantivy opens: {error}; delete it, and it is built again") from error


def _unpacked(url: str, digest: str) -> Path:
    """The folder of a shard on this machine; whole, since it is renamed into its place."""
    folder = private_folder() / f"passages-{digest}"
    if not folder.is_dir():
        fs, path = filesystem(url)
        unpacking = fresh_folder(folder.with_name(f"{folder.name}.{os.getpid()}-{threading.get_ident()}"))
        try:
            with fs.open(path, "rb") as file, zipfile.ZipFile(file) as archive:
                archive.extractall(unpacking)
            with contextlib.suppress(OSError):  # another process was quicker
                unpacking.rename(folder)
        except (OSError, zipfile.BadZipFile) as error:
            raise MillError(f"{url} can't be unpacked: {error}; delete it, and it is built again") from error
        finally:
            shutil.rmtree(unpacking, ignore_errors=True)
    return folder


def _tantivy() -> Any:
    try:
        return importlib.import_module("tantivy")
    except ImportError as error:
        raise MillError(
            "context: retrieved needs tantivy, not installed here: pip install 'thoughtmill[retrieval]'"
        ) from error


def _schema(tantivy: Any) -> Any:
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("words", tokenizer_name="whitespace", index_option="freq")
    builder.add_text_field("document", tokenizer_name="raw", index_option="basic")
    builder.add_bytes_field("passage", stored=True, indexed=False)
    return builder.build()
