"""The example configs: each is loaded, questions change what they ask for, and the reference knows every key."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import typer.testing

from augment.requests.prompts import SLOTS, load_template, template_names
from pipelines import cli, sample_text
from pipelines.cli import examples, own_data
from pipelines.cli.own_data import OwnData
from pipelines.config import CardConfig
from pipelines.tools import reference
from pipelines.yaml_config import load
from sharding.errors import RequestError

DOCS = Path(__file__).parent.parent / "docs"
NAMES = sorted(examples.listing())


def test_there_is_one_for_every_place() -> None:
    assert {"demo", "tpt", "adaptive", "rehearsal", "dataflow", "spark", "tokenize", "own-prompt"} <= set(NAMES)
    assert all(about.endswith(".") for about in examples.listing().values())


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_valid_and_answers_change_three_keys(name: str, tmp_path: Path) -> None:
    (tmp_path / "asked").mkdir()
    examples.write(name, tmp_path / "plain.yaml")
    answers = {"path": 'my "raw"/*.jsonl # not a comment', "tokenizer": "org/model", "output": "gs://b/x: y"}
    examples.write(name, tmp_path / "asked" / "asked.yaml", answers)
    plain, asked = load(str(tmp_path / "plain.yaml")), load(str(tmp_path / "asked" / "asked.yaml"))
    assert plain.source is not None and asked.source is not None
    kept = {key: examples.value_of(name, key) for key in examples.QUESTIONS}
    assert kept == {"path": plain.source.path, "tokenizer": plain.tokenizer, "output": plain.output}
    assert (asked.source.path, asked.tokenizer, asked.output) == tuple(answers.values())
    before, after = ((tmp_path / which).read_text().splitlines() for which in ("plain.yaml", "asked/asked.yaml"))
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    assert len([line for line in changed if "prompt:" not in line]) == 3


@pytest.mark.parametrize("name", NAMES)
def test_an_example_says_nothing_of_data_it_does_not_know(name: str, tmp_path: Path) -> None:
    examples.write(name, tmp_path / "plain.yaml")
    card = load(str(tmp_path / "plain.yaml")).card
    assert card == CardConfig()
    (tmp_path / "told").mkdir()
    data = OwnData('The "book": one', ("ja", "zh"), "cc-by-4.0")
    examples.write(name, tmp_path / "told" / "mill.yaml", data=data)
    told = load(str(tmp_path / "told" / "mill.yaml")).card
    assert (told.name, told.language, told.license) == (data.name, data.language, data.license)


@pytest.fixture
def init(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str]:
    """Calls `thoughtmill init` in a folder of its own and gives all that it says."""
    monkeypatch.setattr(cli, "set_up_logging", lambda debug: None)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, answers: str | None = None) -> str:
        done = typer.testing.CliRunner().invoke(cli.app, ["init", *arguments], input=answers)
        assert done.exit_code == 0, done.output
        return done.output

    return call


def test_init_asks_when_told_to(init: Callable[..., str]) -> None:
    said = init("mill.yaml", "--example", "rehearsal", "--ask", answers="texts/\n\nout/mine\nA book\nen, ja\ncc0-1.0\n")
    config = load("mill.yaml")
    assert config.source is not None and config.source.path == "texts/"
    assert (config.tokenizer, config.output) == ("smollm2-135m-instruct", "out/mine")
    assert (config.card.name, config.card.language, config.card.license) == ("A book", ("en", "ja"), "cc0-1.0")
    assert "What is the dataset called?" in said
    init("empty.yaml", "--example", "rehearsal", "--ask", answers="\n" * 6)
    assert load("empty.yaml").card == CardConfig()
    init(
        "given.yaml",
        "--ask",
        "--source",
        "a",
        "--tokenizer",
        "b",
        "--output",
        "c",
        "--name",
        "d",
        "--language",
        "e",
        answers="\n",
    )


def test_init_asks_nothing_where_nobody_is(init: Callable[..., str]) -> None:
    init("mill.yaml", "--license", "mit", "--language", "ja,zh")
    card = load("mill.yaml").card
    assert (card.name, card.language, card.license) == (CardConfig().name, ("ja", "zh"), "mit")


JAPANESE = "氷河は、圧力のもとでゆっくりと流れる氷の塊である。山の上に雪が積もり、やがて氷になる。"


def test_init_finds_out_the_language_and_never_guesses_a_licence(
    init: Callable[..., str], write_jsonl: Callable[..., str]
) -> None:
    source = write_jsonl([{"text": JAPANESE * 8}, {"text": JAPANESE * 9}, {"text": "?"}])
    assert "card.language: ja" in init("mill.yaml", "--source", source)
    card = load("mill.yaml").card
    assert card.language == ("ja",) and card.license is None and card.name == CardConfig().name


def test_init_goes_by_the_card_of_a_dataset(init: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "README.md").write_text(
        "---\npretty_name: A book\nlanguage: [en, false]\nlicense: cc-by-4.0\n---\n# A book\n"
    )
    (tmp_path / "book" / "a.txt").write_text(JAPANESE * 9)
    init("mill.yaml", "--source", "book/*.txt", "--name", "Mine")
    card = load("mill.yaml").card
    assert (card.name, card.language, card.license) == ("Mine", ("en",), "cc-by-4.0")


@pytest.mark.parametrize("front", ["", "---\n[1\n---\n", "---\n- a\n---\n", "--- x", "---\nlicense: [a]\n---\n"])
def test_a_card_that_is_none_tells_nothing(front: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(front)
    assert own_data.found_out(str(tmp_path)) == OwnData()


def test_a_sample_is_written_where_the_source_is_looked_for(init: Callable[..., str], tmp_path: Path) -> None:
    init("mill.yaml", "--example", "rehearsal", "--sample")
    init("again.yaml", "--example", "tokenize", "--sample")
    sample = tmp_path / "raw" / "sample.jsonl"
    assert [json.loads(line) for line in sample.read_text().splitlines()] == sample_text.topic_documents()
    assert load("mill.yaml").card.license == "psfl"
    sample.write_text("my own\n")
    with pytest.raises(RequestError, match=r"raw/sample\.jsonl exists and is no sample"):
        own_data.write_sample("raw")
    with pytest.raises(RequestError, match=r"s3://b/raw is no local path"):
        own_data.write_sample("s3://b/raw")
    assert sample.read_text() == "my own\n"


def test_a_prompt_comes_with_its_example_and_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    prompt, config = examples.write("own-prompt", tmp_path / "a" / "mill.yaml")
    assert [tier.prompt for tier in load(str(config)).budget.tiers] == [None, "brief", str(prompt)]
    assert all(f"{{{slot}}}" in load_template(str(prompt)).text for slot in SLOTS)
    config.unlink()
    with pytest.raises(RequestError, match=r"own-prompt\.txt exists"):
        examples.write("own-prompt", config)
    assert not config.exists()


def test_the_cookbook_names_every_packaged_prompt_and_slot() -> None:
    page = (DOCS / "cookbook.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == template_names()
    assert re.findall(r"^\| `\{(\w+)\}` \|", page, re.MULTILINE) == list(SLOTS)


def test_the_reference_is_up_to_date() -> None:
    page = (DOCS / "reference.md").read_text()
    assert page == reference.render(), "run: python -m pipelines.tools.reference --write docs/reference.md"


def test_the_reference_describes_every_key() -> None:
    rows = re.findall(r"^\| `\w+` \|.*$", reference.render(), re.MULTILINE)
    assert len(rows) > 100
    undescribed = [row for row in rows if row.endswith("|  |")]
    assert not undescribed


def test_links_of_the_reference_lead_to_sections() -> None:
    page = reference.render()
    titles = {re.sub(r"[^\w-]", "", title.lower()) for title in re.findall(r"^## `?(.*?)`?$", page, re.MULTILINE)}
    assert set(re.findall(r"\(#(.*?)\)", page)) <= titles
