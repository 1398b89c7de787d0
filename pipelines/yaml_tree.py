"""YAML text to plain values, under `yaml_config`: what YAML would guess is an error that says what to write instead.

A date, a yes, a 010 that was meant as text is changed by YAML before anyone sees it, a key that stands twice loses what
stood there first, and anchors can make gigabytes or a circle of a few lines. None of that gets through. `${NAME}` in a
text is filled in from the environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from sharding.errors import RequestError

MAX_VALUES = 20_000
MAX_CHARACTERS = 4_000_000
"""With all anchors filled in; the largest config that anyone has shown holds a hundredth."""

MAX_DEPTH = 100
MAX_DIGITS = 1000

_NUMBER = "tag:thoughtmill,number"
_PLAIN = "tag:yaml.org,2002:"
_MERGE, _TEXT, _VALUE = (_PLAIN + name for name in ("merge", "str", "value"))
_READ_AS = {"bool": "yes or no", "int": "a number", "float": "a number", "timestamp": "a date", "null": "nothing"}
_VARIABLE = re.compile(r"(\$?)\$\{(?:([A-Za-z_][A-Za-z0-9_]*)\})?")
_HOME = re.compile(r"~(/|$)|~[^/\s]+/")


class _Loader(yaml.SafeLoader):
    """YAML 1.2 numbers: 1e9 is a number (YAML 1.1 reads it as text), and a whole number when it is one."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem="nested too deep", problem_mark=self.peek_event().start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


class Dumper(yaml.SafeDumper):
    """Quotes what `parse` would not read back as the same text."""


for _kind in (_Loader, Dumper):
    _kind.add_implicit_resolver(_NUMBER, re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789"))


def _written(dumper: Dumper, text: str) -> yaml.ScalarNode:
    # Line ends that are none to anyone else are folded away unless they are escaped.
    return dumper.represent_scalar(_TEXT, text, style='"' if re.search("[\x85\u2028\u2029]", text) else None)


Dumper.add_representer(str, _written)


def parse(text: str, origin: str) -> Any:
    """The values of a YAML text; None of an empty one.

    Raises:
        RequestError: it is no YAML, or holds what can't be meant; names key and line.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
        return None if node is None else _Tree(origin).value(node, "")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        raise RequestError(f"{origin} is not valid YAML: {where}{error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise RequestError(f"{origin} is not valid YAML: {' '.join(str(error).split())}") from error


def literal(text: str) -> str:
    """A text as `parse` has to find it to give it back."""
    return text.replace("${", "$${")


class _Tree:
    """One text on its way to values: where it is from, how much of it there is, and what is being filled in."""

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._values = self._characters = 0
        self._open: set[int] = set()

    def value(self, node: yaml.Node, path: str) -> Any:
        self._count(node, path)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if id(node) in self._open:
            raise self._error(node, path, "the anchor holds itself: a config has an end")
        self._open.add(id(node))
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_PLAIN}seq":
            found: Any = [self.value(child, _under(path, str(i))) for i, child in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode) and node.tag == f"{_PLAIN}map":
            found = self._mapping(node, path)
        else:
            raise self._error(node, path, f"a config has no use for the tag {node.tag}: leave it out")
        self._open.discard(id(node))
        return found

    def _count(self, node: yaml.Node, path: str) -> None:
        self._values += 1
        if isinstance(node, yaml.ScalarNode):
            self._characters += len(node.value)
        if self._values > MAX_VALUES or self._characters > MAX_CHARACTERS:
            what = f"{MAX_VALUES:,} values" if self._values > MAX_VALUES else f"{MAX_CHARACTERS:,} characters"
            raise self._error(node, path, f"more than {what} with all anchors filled in: write it without them")

    def _mapping(self, node: yaml.MappingNode, path: str) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        found: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = "<<" if key_node.tag == _MERGE else self._key(key_node, path)
            if key in lines:
                said = f"the key stands twice, in lines {lines[key]} and {_line(key_node)}: keep one"
                raise self._error(None, _under(path, key), said)
            lines[key] = _line(key_node)
            if key_node.tag == _MERGE:
                for more in self._merged(value_node, _under(path, key)):
                    merged = more | merged
            else:
                found[key] = self.value(value_node, _under(path, key))
        return merged | found

    def _merged(self, node: yaml.Node, path: str) -> Iterator[dict[str, Any]]:
        found = self.value(node, path)
        for entry in found if isinstance(found, list) else [found]:
            if not isinstance(entry, dict):
                raise self._error(node, path, "what is merged has to be a mapping, or a list of them")
            yield entry

    def _key(self, node: yaml.Node, path: str) -> str:
        self._count(node, path)
        if not isinstance(node, yaml.ScalarNode):
            raise self._error(node, path, "a key has to be a text")
        if node.tag in (_TEXT, _VALUE):
            return self._filled(node, _under(path, node.value))
        raise self._quote(node, _under(path, node.value), "key ")

    def _scalar(self, node: yaml.ScalarNode, path: str) -> Any:
        text = node.value
        if node.tag in (_TEXT, _VALUE):
            return self._filled(node, path)
        if node.tag == f"{_PLAIN}null" and text in ("", "~", "null", "Null", "NULL"):
            return None
        if node.tag == f"{_PLAIN}bool" and text in ("true", "True", "TRUE", "false", "False", "FALSE"):
            return text.lower() == "true"
        if node.tag == f"{_PLAIN}int" and len(text) > MAX_DIGITS:
            raise self._error(node, path, f"a number of {len(text):,} characters: quote it if it is a text")
        if node.tag == f"{_PLAIN}int" and re.fullmatch(r"[-+]?(0|[1-9][0-9_]*)", text):
            return int(text.replace("_", ""))
        if node.tag == f"{_PLAIN}float" and ":" not in text:
            return _Loader("").construct_object(node)
        if node.tag == _NUMBER:
            number = float(text)
            return int(number) if number.is_integer() else number
        if node.tag.removeprefix(_PLAIN) in _READ_AS:
            raise self._quote(node, path)
        raise self._error(node, path, f"a config has no use for the tag {node.tag}: leave it out")

    def _filled(self, node: yaml.ScalarNode, path: str) -> str:
        """The text with the variables that it names; `$${` stands for `${`."""

        def value_of(found: re.Match[str]) -> str:
            escaped, name = found.groups()
            if escaped:
                return found[0][1:]
            if name is None:
                said = f"{node.value[:120]!r}: a variable is ${{NAME}}; $${{ stands for the characters themselves"
                raise self._error(node, path, said)
            value = os.environ.get(name)
            if value is None:
                said = f"the environment has no {name}: set it, or write $${{ for the characters themselves"
                raise self._error(node, path, said)
            if not value.isprintable() and "\\n" not in repr(value):
                raise self._error(node, path, f"the value of {name} in the environment is no UTF-8 text: {value!r}")
            return value

        text = _VARIABLE.sub(value_of, node.value)
        if re.search("[\ud800-\udfff]", text):
            raise self._error(node, path, "half a surrogate pair is no text: write the character itself")
        self._characters += max(len(text) - len(node.value), 0)
        return text

    def _quote(self, node: yaml.ScalarNode, path: str, what: str = "") -> RequestError:
        read_as = _READ_AS.get(node.tag.removeprefix(_PLAIN), "a number")
        way_out = f'quote it ("{node.value}") if it is a text'
        if not what and read_as == "yes or no":
            way_out += ", or write true or false"
        elif not what and read_as == "a number":
            way_out += ", or write the number in full, without a leading 0, letters or colons"
        return self._error(node, path, f"YAML reads the {what}{node.value} as {read_as}: {way_out}")

    def _error(self, node: yaml.Node | None, path: str, said: str) -> RequestError:
        where = "" if node is None else f" (line {_line(node)})"
        shown = path if len(path) <= 200 else path[:197] + "..."
        return RequestError(f"{self._origin}{where}: {shown}: {said}" if path else f"{self._origin}{where}: {said}")


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _under(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def with_home(tree: Any, path: str = "") -> Any:
    """Plain values in which `~` at the start of a text is the home it names.

    Raises:
        RequestError: there is no such home.
    """
    if isinstance(tree, Mapping):
        return {key: with_home(value, _under(path, str(key))) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [with_home(value, _under(path, str(i))) for i, value in enumerate(tree)]
    if not isinstance(tree, str) or not _HOME.match(tree):
        return tree
    name, slash, rest = tree.partition("/")
    try:
        return f"{Path(name).expanduser()}{slash}{rest}"
    except (RuntimeError, ValueError) as error:  # no such user, or no name of one
        raise RequestError(f"{path}: {tree!r}: there is no home for {name!r} here: write the folder") from error
