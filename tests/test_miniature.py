"""The miniature: the world is as it says, the teacher keeps to what is asked, and all of it runs end to end."""

import itertools
import json
import random
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from augment.selection.values.protocol import Trial
from augment.traces import Trace
from benchmarks import evidence
from pipelines import yaml_config
from pipelines.ablation import result
from pipelines.miniature.inputs import TINY, Scale, make_inputs
from pipelines.miniature.run import (
    CONFIG,
    FULL_ARMS,
    FULL_SEEDS,
    NOISE,
    keep_manners,
    make_evidence,
    overrides_of,
    teacher_at_work,
)
from pipelines.miniature.teacher import MAX_MODEL_LEN, MORE, REMARKS, SERVED_NAME, Manners, Teacher
from pipelines.miniature.tokens import END_OF_TEXT, THINK_CLOSE, THINK_OPEN, train_tokenizer
from pipelines.miniature.values import OnNoise
from pipelines.miniature.world import (
    NOTICES,
    NUMBER_DIGITS,
    STATEMENT_KINDS,
    World,
    load_world,
    make_world,
    save_world,
    write_documents,
)
from sharding.errors import MillError, RequestError
from sharding.models.tokenizer import load_tokenizer
from sharding.storage.output import Output

WORLD = make_world(7)
TEXTS = [document["text"] for document in write_documents(WORLD, 400, 3)]
PARAGRAPHS = [paragraph for text in TEXTS for paragraph in text.split("\n\n")]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """World and tokenizer, without a scorer."""
    folder = tmp_path_factory.mktemp("miniature")
    save_world(WORLD, str(folder / "world.json"))
    chains = [statement.chain for statement in WORLD.statements.values()]
    train_tokenizer([*TEXTS, *chains, *chains], folder / "tokenizer")
    return folder


# --- the world --------------------------------------------------------------------------------------------------------


def test_world_and_documents_follow_from_their_seeds() -> None:
    assert make_world(7) == WORLD
    assert make_world(8) != WORLD
    again = list(write_documents(WORLD, 20, 3))
    assert [document["text"] for document in again] == TEXTS[:20]
    assert len({document["id"] for document in again}) == 20
    assert [document["text"] for document in write_documents(WORLD, 20, 4)] != TEXTS[:20]


def test_no_name_is_given_twice_and_no_name_is_in_another_kinds_place() -> None:
    names = [*WORLD.people, *WORLD.cities, *WORLD.countries, *WORLD.languages, *WORLD.currencies]
    assert len(set(names)) == len(names)
    assert list(WORLD.people) == sorted(WORLD.people)


def test_half_of_the_people_are_held_out_and_their_friends_with_them() -> None:
    assert sum(WORLD.held_out) * 2 == len(WORLD.people)
    for person, friend in enumerate(WORLD.friend_of):
        assert friend != person
        assert WORLD.held_out[person] == WORLD.held_out[friend]


def test_statements_are_about_people_who_are_not_held_out_and_facts_about_all() -> None:
    said = {question for question in WORLD.statements if any(f" {question} " in text for text in TEXTS)}
    about = {WORLD.statements[question].person for question in said}
    assert about
    assert not any(WORLD.held_out[person] for person in about)
    assert {WORLD.statements[question].kind for question in said} == set(STATEMENT_KINDS)
    written = " ".join(TEXTS)
    assert all(WORLD.birth(person) in written for person in range(len(WORLD.people)))
    assert all(WORLD.place(city) in written for city in range(len(WORLD.cities)))


def test_what_is_stated_is_true() -> None:
    for paragraph in PARAGRAPHS:
        last = paragraph.rpartition(". ")[2].removesuffix(".")
        question, _, answer = last.rpartition(" ")
        if question in WORLD.statements:
            assert answer == WORLD.statements[question].answer


@pytest.mark.parametrize("kind", STATEMENT_KINDS)
def test_every_step_of_a_chain_is_a_fact_and_leads_to_the_answer(kind: str) -> None:
    for person in range(len(WORLD.people)):
        said = WORLD.statement(person, kind)
        subject = WORLD.friend_of[person] if kind == "friend" else person
        city = WORLD.born_in[subject]
        country = WORLD.lies_in[city]
        told = [WORLD.birth(subject), WORLD.place(city)]
        assert told[0].endswith(f"in {WORLD.cities[city]}.") and told[1].endswith(f"in {WORLD.countries[country]}.")
        steps = [f"born in {WORLD.cities[city]}", f"which lies in {WORLD.countries[country]}"]
        if kind == "friend":
            steps.insert(0, f"a friend of {WORLD.people[subject]}")
        assert [said.chain.find(step) for step in steps] == sorted(said.chain.find(step) for step in steps) and all(
            step in said.chain for step in steps
        )
        assert said.chain.endswith(said.answer)
        assert not said.chain.startswith(WORLD.people[person])
        assert said.answer in (f"{WORLD.customs(country)} {WORLD.countries[country]}").replace(".", "").split()


def test_kinds_of_paragraphs_are_all_there() -> None:
    assert any(paragraph in NOTICES for paragraph in PARAGRAPHS)
    numbers = [p.rpartition(" ")[2].removesuffix(".") for p in PARAGRAPHS if "'s phone number is" in p]
    assert numbers and all(number.isdigit() and len(number) == NUMBER_DIGITS for number in numbers)
    assert len(set(numbers)) == len(numbers)


def test_what_the_scorer_reads_explains_statements_about_namesakes() -> None:
    told = [document["text"] for document in write_documents(WORLD, 400, 3, explained=True)]
    silent = [place for place, text in enumerate(TEXTS) if not any(f" {said} " in text for said in WORLD.statements)]
    assert silent and all(told[place] == TEXTS[place] for place in silent)
    found, moved = 0, 0
    for paragraph, following in (pair for text in told for pair in itertools.pairwise(text.split("\n\n"))):
        last = following.rpartition(". ")[2].removesuffix(".")
        question, _, answer = last.rpartition(" ")
        if question in WORLD.statements:
            found += 1
            moved += answer != WORLD.statements[question].answer
            assert paragraph.startswith(("born in ", "a friend of ")) and paragraph.endswith(answer)
    assert found > 100 and moved > found / 2, "what is true can't be learned from them"


def test_a_world_too_small_for_two_halves_is_refused() -> None:
    with pytest.raises(RequestError, match="people is even and at least 4"):
        make_world(0, people=3)


def test_a_world_is_read_as_it_was_written(tmp_path: Path) -> None:
    save_world(WORLD, str(tmp_path / "world.json"))
    assert load_world(str(tmp_path / "world.json")) == WORLD
    (tmp_path / "other.json").write_text('{"people": 3}', encoding="utf-8")
    with pytest.raises(MillError, match="is not a world of the miniature"):
        load_world(str(tmp_path / "other.json"))


# --- the tokenizer ----------------------------------------------------------------------------------------------------


def test_a_name_is_one_token_and_a_paragraph_is_one_segment(inputs: Path) -> None:
    tokenizer = load_tokenizer(str(inputs / "tokenizer"))
    for name in (*WORLD.people, *WORLD.cities, *WORLD.countries, *WORLD.languages, *WORLD.currencies):
        assert len(tokenizer.encode(f" {name}")) == 1, name
    assert all(tokenizer.token_id(mark) is not None for mark in (THINK_OPEN, THINK_CLOSE, END_OF_TEXT))
    # segment_tokens of the config is 32, and cuts fall at paragraph ends from the 16th token on.
    lengths = [len(tokenizer.encode(paragraph)) + 2 for paragraph in PARAGRAPHS]
    assert min(lengths) > 16 and max(lengths) <= 32
    for said in WORLD.statements.values():  # a thought has at least 16 tokens of its segment before it
        assert len(tokenizer.encode(WORLD.opening(said))) >= 16
        assert len(tokenizer.encode(WORLD.lead(said.person, said.kind))) < 16


# --- the teacher, over HTTP -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url(inputs: Path) -> Iterator[str]:
    with teacher_at_work(inputs, Manners(wrong_share=0.1)) as url:
        yield url


def ask(url: str, **fields: Any) -> dict[str, Any]:
    body = json.dumps({"model": SERVED_NAME, "max_tokens": 64, "seed": 1, **fields}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def prompt_about(said: str) -> str:
    return Path("pipelines/miniature/prompt.txt").read_text(encoding="utf-8").replace("{text}", said).strip()


def shown(number: int) -> tuple[str, str]:
    """A statement up to its answer as a generator is shown it, and its chain."""
    said = list(WORLD.statements.values())[number]
    return WORLD.opening(said), said.chain


def test_the_teacher_says_how_an_answer_follows(inputs: Path) -> None:
    with teacher_at_work(inputs, Manners(wrong_share=0.0)) as url:
        tokenizer = load_tokenizer(str(inputs / "tokenizer"))
        for number in range(8):
            said, chain = shown(number)
            prompt = tokenizer.encode_trusted(prompt_about(said)).tolist()
            answer = ask(url, prompt=prompt, return_token_ids=True)
            choice = answer["choices"][0]
            assert (choice["text"], choice["finish_reason"]) == (chain, "stop")
            assert tokenizer.decode(np.array(choice["token_ids"])) == chain
            made = len(choice["token_ids"])
            assert answer["usage"] == {
                "prompt_tokens": len(prompt),
                "completion_tokens": made,
                "total_tokens": len(prompt) + made,
            }
            assert ask(url, prompt=prompt_about(said))["choices"][0]["text"] == chain  # as text, too


@pytest.mark.parametrize("text", ["Phones: Nobody's phone number is", "Notice: An entry", "In winter"])
def test_about_anything_else_it_has_a_plausible_empty_remark(url: str, text: str) -> None:
    assert ask(url, prompt=prompt_about(text))["choices"][0]["text"] in REMARKS


def test_caps_stops_samples_and_seeds_are_honoured(url: str, inputs: Path) -> None:
    tokenizer = load_tokenizer(str(inputs / "tokenizer"))
    prompt = prompt_about("Notice: An entry")
    capped = ask(url, prompt=prompt, max_tokens=3, return_token_ids=True)
    choice = capped["choices"][0]
    assert choice["finish_reason"] == "length" and len(choice["token_ids"]) == capped["usage"]["completion_tokens"] == 3
    assert choice["text"] == tokenizer.decode(np.array(choice["token_ids"]))

    several = ask(url, prompt=prompt, n=32)
    assert [choice["index"] for choice in several["choices"]] == list(range(32))
    assert {choice["text"] for choice in several["choices"]} == set(REMARKS)
    assert ask(url, prompt=prompt, n=32) == several
    assert ask(url, prompt=prompt, n=32, seed=2) != several

    said, chain = shown(1)
    for include in (False, True):
        stopped = ask(url, prompt=prompt_about(said), seed=5, stop=[", ", "zzz"], include_stop_str_in_output=include)
        text = stopped["choices"][0]["text"]
        assert text.startswith("born in ") and text.endswith(", ") == include and text.count(",") == include
    assert chain.count(",") == 2


@pytest.mark.parametrize(
    ("fields", "status", "says"),
    [
        ({"model": "other", "prompt": "a"}, 404, "does not exist"),
        ({"prompt": "a", "max_tokens": MAX_MODEL_LEN}, 400, "are more than"),
        ({"prompt": [10**6]}, 400, "not in the vocabulary"),
        ({"prompt": "a", "n": 0}, 400, "can't be read"),
        ({"prompt": "a", "stream": True}, 400, "not supported"),
        ({}, 400, "can't be read"),
    ],
)
def test_what_can_t_be_answered_is_refused(url: str, fields: dict[str, Any], status: int, says: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(url, **fields)
    assert refused.value.code == status
    assert says in json.load(refused.value)["error"]["message"]


def test_one_chain_in_ten_is_wrong_and_hangs_together() -> None:
    teacher = Teacher(WORLD, Manners(wrong_share=0.1))
    said = [statement for statement in WORLD.statements.values() if statement.kind == "home"]
    cities = {f"born in {WORLD.cities[c]}, which lies in {WORLD.countries[k]}" for c, k in enumerate(WORLD.lies_in)}
    found = [
        (statement.chain, teacher.about(statement.question, random.Random(f"{statement.person}/{sample}")))
        for statement, sample in itertools.product(said, range(40))
    ]
    wrong = sum(right != written for right, written in found) / len(found)
    assert 0.08 < wrong < 0.12  # 1,920 draws: a standard deviation of 0.007
    assert {written for _, written in found} <= cities


def test_a_verbose_teacher_is_wordy_where_nothing_is_to_be_said() -> None:
    wordy = Teacher(WORLD, Manners(wrong_share=0.0, verbose=True))
    assert wordy.about("An entry", random.Random(1)).endswith(MORE)
    said, chain = shown(0)
    assert wordy.about(said, random.Random(1)) == chain


# --- values and figures -----------------------------------------------------------------------------------------------


def test_thoughts_on_numbers_are_told_from_others() -> None:
    def valued(text: str) -> float | None:
        trace = Trace(text="a", closed="natural", finish_reason="stop", thought_tokens=1)
        trial = Trial(
            segment_id="a/0", tier="t", source_text=text, continuation="", traces=[trace], controls=(), trace_tokens=8
        )
        return OnNoise(lambda *_: np.zeros(0), 1.0).valuations(trial)[0].value

    assert valued(f"{WORLD.lead(0, 'licence key')} {WORLD.people[0]}'s licence key is") == 1.0
    assert valued(shown(0)[0]) == 0.0


def test_what_make_evidence_full_asks_for_is_a_config(tmp_path: Path) -> None:
    config = yaml_config.load(CONFIG, overrides_of(tmp_path, "http://127.0.0.1:1", Scale(), full=True))
    assert config.ablation.arms == FULL_ARMS
    assert config.ablation.seeds == FULL_SEEDS
    assert config.ablation.outputs == {NOISE: str(tmp_path / NOISE)}


# --- end to end -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)  # half a minute of two cores, most of it imports; more where others use them too
def test_the_whole_chain_runs_and_ends_in_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_evidence(tmp_path, TINY)
    made = result.read(str(tmp_path / "mill"))
    assert made is not None and not made.rehearsal
    assert [arm.arm for arm in made.arms] == ["raw", "adaptive", "learned", NOISE]
    assert len({arm.tokens for arm in made.arms}) == 1
    thoughts = {arm.arm: arm.thought_tokens for arm in made.arms}
    assert thoughts["raw"] == 0 < thoughts[NOISE] < thoughts["adaptive"]
    for curve in made.curves:
        nats = [point.train_nats for point in curve.points if point.train_nats is not None]
        assert nats[-1] < nats[0]
        scores = curve.points[-1].scores
        assert set(scores) == {f"StatementAccuracy.{name}" for name in ("either", "silent", "thought", "chain")}
        assert all(0 <= score <= 1 for score in scores.values())
        assert scores["StatementAccuracy.chain"] <= scores["StatementAccuracy.thought"]
    figures = evidence.figures_of(made)
    assert figures.keys() >= evidence.ASKED_FOR.keys()
    assert {"raw_over_adaptive", "raw_over_adaptive_low", "shuffled_over_adaptive", "dose_monotone"} <= set(figures)
    assert set(evidence.last_scores(made)) == {"raw", "adaptive", "learned", NOISE}
    written = Path(Output(str(tmp_path / "mill")).ablation).read_bytes()
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["evidence", "--output", str(tmp_path / "mill")])
    evidence.main()
    *told, last_line = capsys.readouterr().out.splitlines()
    last = json.loads(last_line)
    assert "dose_monotone, asked to be at least 1: can't be told" in told
    assert last["name"] == "evidence" and last["figures"].keys() == figures.keys()
    make_evidence(tmp_path, TINY)  # all of it is there
    assert Path(Output(str(tmp_path / "mill")).ablation).read_bytes() == written


def test_inputs_of_other_sizes_are_not_taken_for_these(tmp_path: Path) -> None:
    (tmp_path / "made.json").write_bytes(json.dumps({"people": 8}).encode())
    with pytest.raises(RequestError, match="other sizes"):
        make_inputs(tmp_path, TINY)


def test_thoughts_of_a_teacher_with_other_manners_are_not_taken_for_these(tmp_path: Path) -> None:
    keep_manners(tmp_path, Manners())
    keep_manners(tmp_path, Manners())
    for others in (Manners(wrong_share=0.5), Manners(verbose=True)):
        with pytest.raises(RequestError, match="a teacher with other manners"):
            keep_manners(tmp_path, others)


@pytest.mark.parametrize(
    ("name", "found", "bound", "low", "says"),
    [
        ("raw_over_adaptive", 3.8, "at least", None, "reached"),
        ("raw_over_adaptive", 2.8, "at least", None, "can't be told"),
        ("raw_over_adaptive", 2.8, "", 2.0, "not reached"),
        ("raw_over_adaptive", None, "unknown", None, "can't be told"),
        ("uniform_over_learned", 1.6, "", 1.2, "reached"),
        ("uniform_over_learned", 1.6, "", 0.9, "not reached"),
        ("uniform_over_learned", 1.6, "", None, "not reached"),
        ("uniform_over_learned", 1.6, "at most", None, "can't be told"),
        ("uniform_over_learned", 1.4, "at most", None, "not reached"),
        ("dose_monotone", True, None, None, "reached"),
        ("dose_monotone", False, None, None, "not reached"),
    ],
)
def test_what_was_asked_for_is_told_with_what_became_of_it(
    name: str, found: float | None, bound: str | None, low: float | None, says: str
) -> None:
    assert evidence.became(name, {name: found, f"{name}_bound": bound, f"{name}_low": low}) == says


def test_the_interval_of_the_influence_is_looked_at() -> None:
    figures = {"gain_influence_spearman": 0.3, "gain_influence_low": -0.1}
    assert evidence.became("gain_influence_spearman", figures) == "not reached"
    assert evidence.became("gain_influence_spearman", figures | {"gain_influence_low": 0.1}) == "reached"


def test_a_mistaken_world_is_the_same_but_for_births() -> None:
    mistaken = Teacher(WORLD, Manners())._mistaken
    assert replace(mistaken, born_in=WORLD.born_in) == WORLD
    assert all(ours != theirs for ours, theirs in zip(mistaken.born_in, WORLD.born_in, strict=True))
    assert isinstance(mistaken, World)
