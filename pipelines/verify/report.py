"""What verify finds: the report, and the problems in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

MAX_PER_CHECK = 10
"""One damaged shard may be wrong in every row: the first so many are named, the others counted."""


class Problem(msgspec.Struct, frozen=True, order=True):
    """One thing that is wrong.

    Attributes:
        where: the file, and where it is known the row and the document.
        what: what is wrong there.
    """

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class Checked(msgspec.Struct):
    """How much was looked at.

    Attributes:
        manifests, files, size_bytes: of all stages.
        rows, tokens, documents: of the shards; a document that was cut into several rows counts once.
        documents_compared, thoughts_compared: what `deep` compared with the scored and the kept parts.
        files_searched: of the output and its ledger, for documents that are to be absent.
    """

    manifests: int = 0
    files: int = 0
    size_bytes: int = 0
    rows: int = 0
    tokens: int = 0
    documents: int = 0
    documents_compared: int = 0
    thoughts_compared: int = 0
    files_searched: int = 0


class Report(msgspec.Struct, kw_only=True):
    """What was checked and what is wrong.

    Attributes:
        output: the folder.
        ok: nothing is wrong.
        deep: whether source and thoughts were compared with what was scored and kept.
        rehearsal: the corpus is a rehearsal and not for training.
        checked: how much was looked at.
        problems: empty when all is well.
        elapsed_s: wall time.
        signed_by: fingerprint of the key whose owner signed the corpus, where one was given and its signature holds.
    """

    output: str
    ok: bool = True
    deep: bool = False
    rehearsal: bool = False
    checked: Checked = msgspec.field(default_factory=Checked)
    problems: list[Problem] = []
    elapsed_s: float = 0.0
    signed_by: str | None = None


def at(url: str, row: int | None = None, doc_id: str | None = None) -> str:
    """A place as text."""
    return url + ("" if row is None else f", row {row}") + ("" if doc_id is None else f", document {shortened(doc_id)}")


def limited(problems: Iterable[Problem], where: str) -> Iterator[Problem]:
    """The first problems of one check, and how many more there are."""
    more = 0
    for number, problem in enumerate(problems):
        if number < MAX_PER_CHECK:
            yield problem
        else:
            more += 1
    if more:
        yield Problem(where, f"{more:,} more problems of this kind")


def shortened(text: str) -> str:
    """A name as it was given, or the beginning of a long one."""
    shown = repr(text)
    return shown if len(shown) <= 120 else shown[:117] + "..."
