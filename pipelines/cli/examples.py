"""The example configs that `thoughtmill init` writes: the files of configs/.

The wheel carries them as pipelines/example_configs/.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from sharding.errors import MillError, RequestError

_HERE = Path(__file__).parent.parent
_FOLDERS = (_HERE / "example_configs", _HERE.parent / "configs")


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
"""Key of an example → what `init --ask` asks; an empty answer keeps the example's value."""


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
    return (_folder() / f"{name}.yaml").read_text(encoding="utf-8")


def write(name: str, target: Path, answers: Mapping[str, str] | None = None) -> None:
    """Write the example to `target`.

    Args:
        answers: values for keys of `QUESTIONS`, in place of the example's.

    Raises:
        RequestError: there is no such example, or `target` exists.
        MillError: `target` can't be written.
    """
    text = _text(name)
    for key, answer in (answers or {}).items():
        found = _line(key).search(text)
        assert found is not None, f"the example {name} has no {key}"
        quoted = json.dumps(answer, ensure_ascii=False)  # a JSON string is a YAML string
        text = text[: found.start("value")] + quoted + text[found.end("value") :]
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise RequestError(f"init: {target} exists; name another file") from error
    except OSError as error:
        raise MillError(f"init: cannot write {target}: {error.strerror}") from error
