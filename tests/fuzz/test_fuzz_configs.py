"""Random configs: `from_mapping` gives a config or a RequestError that names a key, and nothing else."""

import copy
import random
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.config import MillConfig
from pipelines.yaml_config import dump, from_mapping, load, to_mapping
from pipelines.yaml_tree import parse
from sharding.errors import RequestError
from tests.fuzz.conftest import Tally, fuzzed, random_of

NUM_CONFIGS = 2_000

WHOLE: dict[str, Any] = {
    "source": {"path": "in.jsonl", "id_field": "id", "metadata_fields": ["kind"]},
    "output": "out",
    "tokenizer": "tokenizer",
    "difficulty": {"scorer": "rehearsal", "segment_tokens": 64, "memory": {"order": 4}},
    "models": {"small": {"engine": "rehearsal", "name": "small"}, "large": {"engine": "vllm", "name": "large"}},
    "budget": {
        "policy": "adaptive",
        "thinking_tokens_per_source_token": 0.5,
        "tiers": [
            {"name": "skip"},
            {"name": "brief", "model": "small", "prompt": "brief", "max_tokens": 48},
            {"name": "deep", "model": "large", "prompt": "expert", "max_tokens": 128, "samples": 2},
        ],
    },
    "sampling": {"temperature": 0.6, "top_p": 0.9},
    "closing": {},
    "feeding": {},
    "ledger": {"flush_rows": 8},
    "select": {"value": "none"},
    "layout": "after_segment",
    "pack": {"sequence_length": 512, "num_shards": 2, "raw_fraction": 0.1},
    "card": {"language": ["en"]},
}

ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2**63, 10**400, 0.5, -0.5, 1e308, float("nan"), float("inf"), "", " ", "none", "\x00",
    "\ud800", "é" * 300, "x" * 100_000, "../..", "s3://bucket/x", "{}", [], [None], [[]], ["skip"], {}, {"": 1},
    {"name": "skip"}, {"a": {"b": {"c": 1}}}, object(), 1j, b"bytes", {1: 2}, (1, 2),
]  # fmt: skip


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a tree."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [p for key, child in children for p in [(*path, key), *places(child, (*path, key))]]


def changed(rng: random.Random) -> dict[str, Any]:
    """A config with one to four values replaced, removed, moved or added."""
    tree = copy.deepcopy(WHOLE)
    for _ in range(rng.randrange(1, 5)):
        path = rng.choice(places(tree) or [("source",)])
        node: Any = tree
        for key in path[:-1]:
            node = node[key]
        roll = rng.random()
        if roll < 0.55:
            node[path[-1]] = copy.deepcopy(rng.choice(ODD))
        elif roll < 0.7:
            del node[path[-1]]
        elif roll < 0.85:
            node[path[-1]] = copy.deepcopy(rng.choice(list(WHOLE.values())))
        elif isinstance(node, dict):
            node[rng.choice(["sorce", "path", "\ud800", "name", "engine_args", "x" * 500])] = copy.deepcopy(
                rng.choice(ODD)
            )
        else:
            node.append(copy.deepcopy(rng.choice(ODD)))
    return tree


def outcome(tree: Any) -> str:
    try:
        config = from_mapping(tree)
    except RequestError as error:
        assert str(error).strip()
        str(error).encode(errors="surrogatepass")
        assert len(str(error)) < 200_000
        return "refused"
    assert isinstance(config, MillConfig)
    assert from_mapping(to_mapping(config)) == config
    return "accepted"


@fuzzed
def test_two_thousand_configs(tally: Tally) -> None:
    rng = random_of(5)
    assert outcome(WHOLE) == "accepted"
    found = [outcome(changed(rng)) for _ in range(NUM_CONFIGS)]
    assert 40 < found.count("accepted") < NUM_CONFIGS - 1_000
    tally("configs", Counter(found))


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(st.sampled_from([*WHOLE, "path", "name", "tiers"]), children, max_size=4)
    ),
    max_leaves=12,
)


@fuzzed
@settings(max_examples=150)
@given(tree=st.dictionaries(st.sampled_from(list(WHOLE)) | st.text(), TREES, max_size=8))
def test_any_tree(tree: dict[str, Any]) -> None:
    outcome(tree)


YAML_BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(8)
)

FILES: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("a list", b"- 1\n- 2\n"),
    ("a word", b"word"),
    ("no UTF-8", b"\xff\xfe\x00"),
    ("an open bracket", b"source: {path: ["),
    ("tags of Python", b"source: !!python/object/apply:os.system ['touch owned']"),
    ("a key twice over", b"? {a: 1}\n: 2\n"),
    ("deep", b"a: " + b"[" * 3_000),
    ("control characters", b"output: \x01\x02"),
    ("two documents", b"a: 1\n---\nb: 2\n"),
    ("a name twice", b"output: a\ntokenizer: t\noutput: b\n"),
    ("a name twice in braces", b"pack: {num_shards: 1, num_shards: 2}\n"),
    ("Latin 1", "card: {name: 'é'}".encode("latin-1")),
    ("Shift JIS", "card: {name: '猫'}".encode("shift-jis")),
    ("UTF-16", "card: {name: x}".encode("utf-16")),
    ("UTF-32", "card: {name: x}".encode("utf-32")),
    ("a circle", b"card: &card {name: *card}"),
    ("a bomb", YAML_BOMB.encode()),
]


@pytest.mark.parametrize("data", [data for _, data in FILES], ids=[name for name, _ in FILES])
def test_a_file_that_is_no_config(tmp_path: Any, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mill.yaml"
    path.write_bytes(data)
    with pytest.raises(RequestError):
        load(str(path))
    assert not (tmp_path / "owned").exists()


@fuzzed
def test_any_line_that_stands_twice_is_refused() -> None:
    rng = random_of(7)
    lines = yaml.safe_dump(WHOLE).splitlines()
    single = [i for i, line in enumerate(lines) if re.fullmatch(r" *[a-z_]+: \S.*", line)]
    for _ in range(40):
        number = rng.choice(single)
        other = lines[number].replace(": ", rng.choice([": ", " : ", ":   "]), 1)
        text = "\n".join([*lines[: number + 1], other, *lines[number + 1 :]])
        with pytest.raises(RequestError, match=rf"twice, in lines {number + 1} and {number + 2}"):
            parse(text, "mill.yaml")


@fuzzed
@settings(max_examples=100)
@given(texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=12), max_size=4))
def test_any_text_is_written_so_that_it_reads_back(texts: list[str]) -> None:
    config = from_mapping({**WHOLE, "card": {"language": [text.replace("~", "-") for text in texts]}})
    assert from_mapping(parse(dump(config), "again")) == config


OVERRIDES = st.text(max_size=30) | st.builds(
    "{}={}".format,
    st.sampled_from(["source.path", "budget.tiers.0.name", "budget.tiers.x", "pack", "a.b.c"]),
    st.text(),
)


@fuzzed
@settings(max_examples=200)
@given(override=OVERRIDES)
def test_any_override(override: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "override.yaml"
    if not path.exists():
        path.write_text(yaml.safe_dump(WHOLE))
    try:
        config = load(str(path), [override])
    except RequestError:
        return
    assert from_mapping(parse(dump(config), "again")) == config


def test_the_rehearsal_of_this_test_is_a_config(rehearsal_config: Callable[..., dict[str, Any]]) -> None:
    assert outcome(rehearsal_config("in.jsonl")) == "accepted"
