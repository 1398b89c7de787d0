"""The example configs that `thoughtmill init` writes: the files of configs/, with what is known of the user's own data.

The wheel carries them as pipelines/example_configs/.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from sharding.errors import MillError, RequestError

if TYPE_CHECKING:
    from pipelines.cli.own_data import OwnData

_HERE = Path(__file__).parent.parent
_FOLDERS = (_HERE / "example_configs", _HERE.parent / "configs")

_CARD = re.compile(r"\ncard:\n(?: .*\n)+")
"""What an example says of its own data, which isn't the user's."""

CARD_HINT = (
    "\n# What only you know of your data, for the dataset card:\n"
    "# card: {name: NAME, language: [en], license: LICENCE}\n"
)


def _folder() -> Path:
    for folder in _FOLDERS:
        if folder.is_dir():
            return folder
    raise MillError("the example configs are missing from this installation: reinstall thoughtmill")


def listing() -> dict[str, str]:
    """Name of each example → its first comment line."""
    return {
        path.stem: path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ").strip()
        for path in sorted(_folder().glob("*.yaml"))
    }


QUESTIONS = {
    "path": "Where is the raw text (a file, folder or glob)?",
    "tokenizer": "Which tokenizer does the model have that you will train?",
    "output": "Where shall the result go?",
}
"""Key of an example → what `init` asks on a terminal; an empty answer keeps the example's value."""


def value_of(name: str, key: str) -> str:
    """What the example says for one of `QUESTIONS`.

    Raises:
        RequestError: there is no such example.
    """
    found = _line(key).search(_text(name))
    assert found is not None, f"the example {name} has no {key}"
    return str(yaml.safe_load(found["value"]))


def _line(key: str) -> re.Pattern[str]:
    return re.compile(rf"^(?P<key> *{key}: *)(?P<value>\"[^\"]*\"|[^#\n]*?)(?P<comment> *(?: #.*)?)$", re.MULTILINE)


def _text(name: str) -> str:
    if name not in listing():
        raise RequestError(f"init --example: {name!r} is not one of {', '.join(listing())}")
    return _CARD.sub("\n", (_folder() / f"{name}.yaml").read_text(encoding="utf-8")).rstrip("\n") + "\n"


def write(
    name: str, target: Path, answers: Mapping[str, str] | None = None, data: OwnData | None = None
) -> tuple[Path, ...]:
    """Write the example to `target`, and beside it the prompt of the user's own that it may have.

    Args:
        answers: values for keys of `QUESTIONS`, in place of the example's.
        data: what is known of the data; what isn't is left out.

    Returns:
        The files that were written.

    Raises:
        RequestError: there is no such example, or a file exists.
        MillError: a file can't be written.
    """
    text = _text(name)
    for key, answer in (answers or {}).items():
        found = _line(key).search(text)
        assert found is not None, f"the example {name} has no {key}"
        text = text[: found.start("value")] + _quoted(answer) + text[found.end("value") :]
    text += _card(data)
    files = {target: text}
    if (prompt := _folder() / f"{name}.txt").is_file():
        own = target.parent / prompt.name
        text = text.replace(f"prompt: {prompt.name}", f"prompt: {_quoted(str(own))}")
        files = {own: prompt.read_text(encoding="utf-8"), target: text}
    for path in files:
        if path.exists():
            raise RequestError(f"init: {path} exists; name another file")
    for path, content in files.items():
        _write_new(path, content)
    return tuple(files)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # a JSON string is a YAML string


def _card(data: OwnData | None) -> str:
    """The `card` section with what is known; a hint in its place where nothing is."""
    lines = []
    if data is not None and data.name:
        lines.append(f"  name: {_quoted(data.name)}\n")
    if data is not None and data.language:
        lines.append(f"  language: [{', '.join(map(_quoted, data.language))}]\n")
    if data is not None and data.license:
        lines.append(f"  license: {_quoted(data.license)}\n")
    return "\ncard:\n" + "".join(lines) if lines else CARD_HINT


def _write_new(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise RequestError(f"init: {path} exists; name another file") from error
    except OSError as error:
        raise MillError(f"init: cannot write {path}: {error.strerror}") from error
