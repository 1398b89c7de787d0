"""A config's text: nothing that stands in it is lost, guessed or taken from the locale."""

import ast
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import yaml_config
from pipelines.yaml_config import from_mapping, load
from pipelines.yaml_tree import parse
from sharding.errors import RequestError


@pytest.fixture
def tree(rehearsal_config: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return rehearsal_config("in.jsonl")


@pytest.fixture
def written(tree: dict[str, Any], tmp_path: Path) -> Callable[[str], str]:
    """A whole config whose sections `card` and `select` are this text."""

    def write(text: str, encoding: str = "utf-8") -> str:
        for section in ("card", "select"):
            tree.pop(section, None)
        path = tmp_path / "mill.yaml"
        path.write_bytes((yaml.safe_dump(tree) + text).encode(encoding))
        return str(path)

    return write


REFUSED = [
    # A key that stands twice.
    ("output: a\noutput: b", ["output", "lines 1 and 2"]),
    ("pack:\n  num_shards: 1\n  sequence_length: 8\n  num_shards: 2", ["pack.num_shards", "lines 2 and 4"]),
    ("models: {a: {name: x}, 'a': {name: y}}", ["models.a", "twice"]),
    ('tiers:\n- name: x\n  "name": y', ["tiers.0.name", "twice"]),
    ("a: &a {x: 1}\nb: &b {x: 2}\nc:\n  <<: *a\n  <<: *b", ["c.<<", "twice"]),
    # What YAML makes of a text.
    ("language: [no]", ["language.0", '"no"', "true or false"]),
    ("enabled: Yes", ["enabled", "quote it", "true or false"]),
    ("enabled: off", ["enabled", "quote it"]),
    ("revision: 010", ["revision", '"010"', "a number"]),
    ("revision: 0x1F", ["revision", '"0x1F"']),
    ("revision: 0b11", ["revision", "quote it"]),
    ("name: 1:30", ["name", '"1:30"', "a number"]),
    ("name: 1:30.5", ["name", "quote it"]),
    ("name: 2024-01-01", ["name", '"2024-01-01"', "a date"]),
    ("name: 2024-01-01 10:00:00", ["name", "a date"]),
    ("models:\n  no: {name: x}", ["models.no", "line 2", "key no", '"no"']),
    ("models: {010: x}", ["models.010", '"010"']),
    ("models: {2024-01-01: x}", ["models.2024-01-01", "a date"]),
    ("models: {1e5: x}", ["models.1e5", "quote it"]),
    ("models: {7: x}", ["models.7", '"7"']),
    ("models: {~: x}", ["models.~", "quote it"]),
    ("models: {1:30: x}", ["models", "quote it"]),
    ("? [a, b]\n: 1", ["key has to be a text"]),
    ("name: !!binary aGk=", ["name", "binary"]),
    ("name: !!set {a, b}", ["name", "set"]),
    # Circles.
    ("a: &a [*a]", ["a.0", "holds itself"]),
    ("a: &a {b: {c: *a}}", ["a.b.c", "holds itself"]),
    ("a: &a {<<: *a, b: 1}", ["a.<<", "holds itself"]),
    # Variables.
    ("a: ${NOT_THERE}", ["a", "NOT_THERE", "set it"]),
    ("a: {b: ['x/${NOT_THERE}/y']}", ["a.b.0", "NOT_THERE"]),
    ("a: ${}", ["a", "${NAME}"]),
    ("a: '${X:-default}'", ["a", "${NAME}"]),
    ("a: ${UNCLOSED", ["a", "${NAME}"]),
    # What no text and no number is.
    ('a: {b: "x\\ud83d"}', ["a.b", "half a surrogate pair"]),
    ('a: {"\\ud83d": 1}', ["half a surrogate pair"]),
    (f"a: {{b: {'9' * 5000}}}", ["a.b", "a number of 5,000 characters", "quote it"]),
]


@pytest.mark.parametrize(("text", "said"), REFUSED, ids=[text for text, _ in REFUSED])
def test_what_cannot_be_meant_is_refused(text: str, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_THERE", raising=False)
    with pytest.raises(RequestError) as raised:
        parse(text, "mill.yaml")
    message = str(raised.value)
    assert "\n" not in message and all(part in message for part in ("mill.yaml", *said)), message


def test_what_can_be_meant_is_as_it_stands() -> None:
    text = """
    texts: ["no", '010', "1:30", '2024-01-01', "", null_, nope, 2024-01-01-final, 1:30am, "=", v1.10]
    numbers: [0, -7, 1_000, 1e9, 2.5e-1, 0.5, .5, +3]
    truths: [true, False]
    nothing: [null, ~, ]
    base: &base {a: 1, b: 2}
    more: {<<: *base, b: 3}
    both: {<<: [*base, {a: 9, c: 4}]}
    again: [*base, *base]
    """
    found = parse(text, "mill.yaml")
    assert found["texts"][:4] == ["no", "010", "1:30", "2024-01-01"] and all(isinstance(x, str) for x in found["texts"])
    assert found["numbers"] == [0, -7, 1000, 10**9, 0.25, 0.5, 0.5, 3] and isinstance(found["numbers"][3], int)
    assert found["truths"] == [True, False] and found["nothing"] == [None, None]
    assert found["more"] == {"a": 1, "b": 3} and found["both"] == {"a": 1, "b": 2, "c": 4}
    assert found["again"] == [{"a": 1, "b": 2}] * 2


def _bomb(levels: int, entry: str) -> str:
    lines = [f"a0: &a0 [{entry}]"]
    return "\n".join(lines + [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)])


def test_a_config_in_utf16_without_a_mark_is_told(written: Callable[..., str]) -> None:
    with pytest.raises(RequestError, match="not UTF-8 text: it holds zero bytes, as UTF-16 does; save it as UTF-8"):
        load(written("", encoding="utf-16-le"))


BOMBS = [
    _bomb(12, "x"),
    _bomb(5, "x" * 100_000),
    "a0: &a0 {k: 1}\n" + "\n".join(f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 12)),
    "a: " + "[" * 3_000,
    "".join(" " * i + "a:\n" for i in range(2_000)),
]


@pytest.mark.parametrize("text", BOMBS, ids=["lists", "texts", "merges", "depth", "blocks"])
def test_a_bomb_ends_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mill.yaml"
    path.write_text(text, encoding="utf-8")
    began = time.process_time()
    tracemalloc.start()
    with pytest.raises(RequestError, match=r"mill\.yaml") as raised:
        load(str(path))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(str(raised.value)) < 500 and "\n" not in str(raised.value)
    assert peak_bytes < 100e6 and time.process_time() - began < 20


def test_a_file_too_large_for_a_config_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.yaml_config.MAX_CONFIG_BYTES", 100)
    path = tmp_path / "mill.yaml"
    path.write_text("#" * 101, encoding="utf-8")
    with pytest.raises(RequestError, match="larger than 100 bytes"):
        load(str(path))


def test_variables_are_filled_in_wherever_a_text_stands(
    written: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHO", "Ünal: #1 {x}")
    monkeypatch.setenv("LANGUAGE_CODE", "no")
    path = written("card:\n  name: 'by ${WHO}'\n  language: ['${LANGUAGE_CODE}']\n  license: $${WHO}-$WHO-$5\n")
    config = load(path, ["card.generator_license=${LANGUAGE_CODE}/${LANGUAGE_CODE}"])
    assert (config.card.name, config.card.language) == ("by Ünal: #1 {x}", ("no",)), "a value is text, never YAML"
    assert (config.card.license, config.card.generator_license) == ("${WHO}-$WHO-$5", "no/no")


def test_a_number_where_a_text_stands_says_quote_it(written: Callable[[str], str]) -> None:
    for text, key in (("card: {license: 7}", "card.license"), ("card: {language: [1.10]}", "card.language.0")):
        with pytest.raises(RequestError, match=f"{key}: .*quote it"):
            load(written(text))


@pytest.mark.parametrize(
    "license", ["12e45678", "no", "010", "2024-01-01", "1:30", "${HOME}", "$${X}", "~x", "0x1F", ""]
)
def test_what_is_written_reads_back(tree: dict[str, Any], tmp_path: Path, license: str) -> None:
    config = from_mapping({**tree, "card": {"license": license, "name": "Größe: 猫"}})
    path = tmp_path / "again.yaml"
    path.write_text(yaml_config.dump(config), encoding="utf-8")
    assert load(str(path)) == config


def test_home_is_meant_wherever_a_path_may_stand(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    tree["source"] = {"path": "~/in/*.jsonl"}
    tree["output"] = "~/out"
    tree["ledger"] = {"path": "~/ledger/"}
    tree["budget"]["tiers"][1]["prompt"] = "~/prompt.txt"
    tree["card"] = {"name": "~5 files", "license": "a~/b"}
    config = from_mapping(tree)
    home = str(tmp_path)
    assert config.source is not None and config.source.path == f"{home}/in/*.jsonl"
    assert (config.output, config.ledger.path) == (f"{home}/out", f"{home}/ledger/")
    assert config.budget.tiers[1].prompt == f"{home}/prompt.txt"
    assert (config.card.name, config.card.license) == ("~5 files", "a~/b")
    for nobody in ("~nobody-of-that-name/x",):
        with pytest.raises(RequestError, match=r"output: .*no home"):
            from_mapping({**tree, "output": nobody})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_config_is_utf_8(written: Callable[..., str], encoding: str) -> None:
    path = written("card: {name: 'Größe ▷ 猫'}", "utf-8")
    Path(path).write_bytes(Path(path).read_text(encoding="utf-8").encode(encoding))
    assert load(path).card.name == "Größe ▷ 猫"


@pytest.mark.parametrize("encoding", ["utf-16", "iso-8859-1"])
def test_another_encoding_is_named(written: Callable[..., str], encoding: str) -> None:
    with pytest.raises(RequestError, match="not UTF-8"):
        load(written("card: {name: 'Größe'}", encoding))


LOCALES = [{"LC_ALL": "C"}, {"LC_ALL": "POSIX", "PYTHONIOENCODING": "ascii"}]


@pytest.mark.parametrize("locale", LOCALES, ids=["C", "POSIX"])
def test_the_locale_changes_no_text(written: Callable[..., str], locale: dict[str, str]) -> None:
    path = written("card: {name: 'Größe ▷ 猫'}")
    code = "import sys; from pipelines.yaml_config import load; print(ascii(load(sys.argv[1]).card.name))"
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", **locale}
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == ascii("Größe ▷ 猫")


def test_no_file_of_the_product_is_opened_by_the_locale() -> None:
    found = []
    for folder in ("pipelines", "sharding", "augment", "difficulty"):
        for path in sorted((Path(__file__).parent.parent / folder).rglob("*.py")):
            calls = (node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call))
            found += [f"{path.name}:{call.lineno}: {ast.unparse(call)}" for call in calls if _takes_the_locale_s(call)]
    assert not found, "say encoding= in these:\n" + "\n".join(found)


def _takes_the_locale_s(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    of = getattr(getattr(call.func, "value", None), "id", "")
    said = {keyword.arg for keyword in call.keywords}
    if "encoding" in said or of == "os" or ast.unparse(call.func).endswith(".Index.open"):  # tantivy's
        return False
    if {"text", "universal_newlines"} & said:
        return name in ("run", "Popen", "check_output", "check_call")
    words = [a.value for a in (*call.args, *(k.value for k in call.keywords)) if isinstance(a, ast.Constant)]
    is_binary = any(isinstance(word, str) and len(word) <= 3 and "b" in word for word in words)
    return name in ("open", "fdopen", "read_text", "write_text", "NamedTemporaryFile") and not is_binary
