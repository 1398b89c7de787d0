"""Deep: what the shards hold against what was scored and kept, part by part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType

from pipelines.verify import sources, thoughts
from pipelines.verify.files import Task
from pipelines.verify.report import Problem, Report, limited
from pipelines.verify.shards import ITEM, RUN, Spills
from pipelines.verify.sources import COPIES
from pipelines.verify.spill import Spill
from pipelines.verify.work import Work
from sharding.storage import manifest
from sharding.storage.manifest import Manifest

NAMED = 100
"""Documents that are missing or incomplete are kept by name up to here."""


class Comparison:
    """The comparison of shards with scored and kept parts. Use as a context manager: it sets records aside on disk.

    Args:
        output: the run's output folder.
        stages: the manifests.
        tasks: all files.
    """

    def __init__(self, output: str, stages: Mapping[str, Manifest], tasks: Sequence[Task]) -> None:
        self._output, self._packed = output, stages["pack"]
        self._urls = {task.number: task.url for task in tasks if task.family == "shards"}
        self._scored = _Parts(task for task in tasks if task.family == "segments")
        self._kept = _Parts(task for task in tasks if task.family == "kept")
        self.size_bytes = self._scored.size_bytes + self._kept.size_bytes
        self._stack = ExitStack()

    def __enter__(self) -> Comparison:
        self._items = self._stack.enter_context(Spill(ITEM, self._scored.number))
        self._runs = self._stack.enter_context(Spill(RUN, self._kept.number))
        self._copies = self._stack.enter_context(Spill(COPIES, self._kept.number))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def spills(self, seen: Spill) -> Spills:
        """Where the check of the shards is to set aside what they hold."""
        return Spills(seen, self._items, self._runs)

    def compare(self, work: Work, report: Report) -> None:
        """Compare, when every shard has been read; adds to the report."""
        found = sources.Compared()
        for number, compared in work.each(self._compare_source, range(self._scored.number)):
            self._scored.advance(number, work)
            report.problems += limited(compared.problems, self._scored.name(number, self._output))
            found.add(compared, NAMED)
        report.checked.documents_compared = found.documents
        report.problems += self._account_for(found)
        for number, thoughts_compared in work.each(self._compare_thoughts, range(self._kept.number)):
            self._kept.advance(number, work)
            report.problems += limited(thoughts_compared.problems, self._kept.name(number, self._output))
            report.checked.thoughts_compared += thoughts_compared.thoughts

    def _compare_source(self, number: int) -> sources.Compared:
        items, part = self._items.part(number), self._scored.tasks.get(number)
        return sources.compare_part(part.url if part else None, items, self._urls, self._copies)

    def _compare_thoughts(self, number: int) -> thoughts.Compared:
        part = self._kept.tasks.get(number)
        return thoughts.compare_part(
            part.url if part else None,
            self._runs.part(number),
            self._copies.part(number),
            self._urls,
            cut_allowed=self._packed.counts.get("thoughts_cut", 0) > 0,
        )

    def _account_for(self, found: sources.Compared) -> Iterator[Problem]:
        """What is missing, cut short or repeated beyond what the pack stage says it left out or copied."""
        counts, url = self._packed.counts, manifest.manifest_url(self._output, "pack")
        if counts.get("rows_left_out", 0):
            return  # whole rows were dropped on purpose, and with them any piece of any document
        left_out = counts.get("documents_contaminated", 0) + counts.get("documents_left_out", 0)
        # A document without any source may be among those left out.
        if not found.num_missing <= left_out <= found.num_missing + found.num_empty:
            said = f"{found.num_missing} scored documents are in no shard, {left_out} were left out on purpose"
            yield Problem(url, said)
            yield from limited(found.missing, url) if not left_out else ()
        yield from limited(found.partial, url)
        copies = counts.get("document_copies", 0)
        if found.num_empty == 0 and found.num_partial == 0 and found.extra_copies != copies:
            said = f"documents are there {found.extra_copies} times beyond the first, it says {copies}"
            yield Problem(url, said)


class _Parts:
    """The files of a family whose records are dealt out by document.

    Attributes:
        tasks: by the number in their names; parts that would be empty are not there.
        number: how many parts the documents were dealt to.
        size_bytes: of all files.
    """

    def __init__(self, tasks: Iterable[Task]) -> None:
        self.tasks: dict[int, Task] = {}
        self.number = 1
        for task in tasks:
            index, _, number = task.entry.name.removesuffix(".arrow").rpartition("-of-")
            self.tasks[int(index.rpartition("-")[2])] = task
            self.number = int(number)
        self.size_bytes = sum(task.entry.size_bytes for task in self.tasks.values())

    def name(self, number: int, otherwise: str) -> str:
        return self.tasks[number].url if number in self.tasks else otherwise

    def advance(self, number: int, work: Work) -> None:
        if number in self.tasks:
            work.advance(self.tasks[number].entry.size_bytes)
