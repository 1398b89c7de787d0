"""What `thoughtmill init` finds out about the user's data: its name, languages and licence.

What it can't find out, it leaves out.
A licence is never guessed: it is what the folder's own dataset card says, or nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sharding.errors import MillError, RequestError

MAX_FILES, MAX_DOCUMENTS = 4, 16
"""So many files are looked into, and so many documents of each."""

MIN_SHARE = 0.2
"""A language is named that at least this share of the documents is in whose language can be told."""

MAX_CARD_BYTES = 1 << 20


@dataclass(frozen=True)
class OwnData:
    """What is known of the data; None and () for what isn't.

    Attributes:
        name: title of the dataset.
        language: ISO 639-1 codes.
        license: as the hub spells it.
    """

    name: str | None = None
    language: tuple[str, ...] = ()
    license: str | None = None

    def or_else(self, other: OwnData) -> OwnData:
        """What is known here, and what only the other knows."""
        return OwnData(self.name or other.name, self.language or other.language, self.license or other.license)

    def told(self) -> dict[str, str]:
        """What is known, by the key of `card`, in words."""
        known = {"name": self.name, "language": ", ".join(self.language), "license": self.license}
        return {key: value for key, value in known.items() if value}


def languages_in(text: str) -> tuple[str, ...]:
    """Codes that stand in an option or an answer, between commas."""
    return tuple(code for code in (part.strip() for part in text.split(",")) if code)


def of_sample() -> OwnData:
    """What is known of the sample text."""
    from pipelines import sample_text

    return OwnData("Python's language reference with thoughts", (sample_text.LANGUAGE,), sample_text.LICENSE)


def found_out(path: str) -> OwnData:
    """What a local source tells: by the dataset card in its folder, and of its languages by its text.

    Nothing is asked of a store elsewhere, and what can't be read tells nothing: the plan will say why.

    Args:
        path: file, folder or glob.
    """
    if "://" in path:
        return OwnData()
    of_card = _of_card(_folder_of(path))
    return of_card if of_card.language else dataclasses.replace(of_card, language=_spoken(path))


def _folder_of(path: str) -> Path:
    """The folder of a file, or that of a glob before its first wildcard."""
    parts = itertools.takewhile(lambda part: not set(part) & set("*?["), Path(path).expanduser().parts)
    folder = Path(*parts)
    return folder.parent if folder.is_file() else folder


def _of_card(folder: Path) -> OwnData:
    """What the front matter of a dataset card says."""
    try:
        with (folder / "README.md").open(encoding="utf-8") as file:
            text = file.read(MAX_CARD_BYTES)
        opening, front, _ = text.split("---", 2)
        tree = {} if opening.strip() else yaml.safe_load(front)
    except (OSError, ValueError, yaml.YAMLError):
        return OwnData()
    if not isinstance(tree, dict):
        return OwnData()
    return OwnData(_word(tree.get("pretty_name")), _words(tree.get("language")), _word(tree.get("license")))


def _word(value: Any) -> str | None:
    return value.strip() or None if isinstance(value, str) else None


def _words(value: Any) -> tuple[str, ...]:
    """One text or several; a YAML reader takes the code of Norwegian for false, which is none."""
    several = value if isinstance(value, list) else [value]
    return tuple(word for word in map(_word, several) if word)


def _spoken(path: str) -> tuple[str, ...]:
    """The languages that the first documents are in, the commonest first."""
    from augment.selection.gates.language import spoken_language

    told = Counter(language for text in _texts(path) if (language := spoken_language(text)) is not None)
    ordered = sorted(told, key=lambda language: (-told[language], language))
    return tuple(language for language in ordered if told[language] >= MIN_SHARE * told.total())


def _texts(path: str) -> Iterator[str]:
    """Texts of the first documents of a few files, far apart."""
    from sharding import sources
    from sharding.records.types import Document
    from sharding.sources import Source, SourceConfig
    from sharding.sources.files import list_files

    try:
        config = SourceConfig(path=path)
        names = [name for name, _ in list_files(Source("source", config))]
    except MillError:
        return
    for name in names[:: max(1, len(names) // MAX_FILES)][:MAX_FILES]:
        try:
            source, files = sources.resolve(Source("source", dataclasses.replace(config, path=name)))
            for unit in sources.units_of(files[0], source.config):
                records = itertools.islice(sources.read_documents(unit, source), MAX_DOCUMENTS)
                yield from (record.text for record in records if isinstance(record, Document))
                break
        except MillError:
            continue


def write_sample(path: str) -> str:
    """Write the sample text where a source is looked for, and give the file; one that is the same is left alone.

    Args:
        path: file, folder or glob; local.

    Raises:
        RequestError: the place is elsewhere, or holds other text already.
        MillError: it can't be written.
    """
    from pipelines.sample_text import as_lines

    if "://" in path:
        raise RequestError(f"init --sample: {path} is no local path: name one by --source, such as raw/*.jsonl")
    is_file = path.endswith(".jsonl") and not set(path) & set("*?[")
    target = Path(path).expanduser() if is_file else _folder_of(path) / "sample.jsonl"
    lines = as_lines()
    try:
        if target.exists():
            if target.read_bytes() != lines:
                raise RequestError(f"init --sample: {target} exists and is no sample: leave --sample out to use it")
            return str(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            file.write(lines)
    except OSError as error:
        raise MillError(f"init --sample: cannot write {target}: {error.strerror}") from error
    return str(target)
