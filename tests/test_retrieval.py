"""Retrieval: what is found and what never is, in one order, from an index that is whole or absent."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from augment.contexts.passage_index import PassageIndex, StoredIndex, build_shard, load_index, read_index
from augment.contexts.passages import Passage, passages_of, runs_of
from augment.requests.contexts import HEAD_OF_PASSAGES
from augment.requests.tiers import PASSAGE_CHARACTERS
from augment.selection.words import words_of
from pipelines import passages
from pipelines.joints import index_request
from pipelines.plan.measured import budget_section
from pipelines.run import mill
from pipelines.takedown.ids import Wanted
from pipelines.takedown.removing import remove
from pipelines.yaml_config import from_mapping
from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.hashing import fingerprint
from sharding.models.tokenizer import load_tokenizer
from sharding.records.types import Request
from sharding.storage import manifest
from sharding.storage.output import Output
from sharding.storage.private import private_folder
from tests.endpoint_server import SERVED, ScriptedServer, completion

FILLER = "Nothing of it is remarkable, and it goes on in this manner for a while, as texts of its kind do. " * 3
PLANTED = "An eigenvalue of the monodromy operator is a root of unity, as Grothendieck has shown in general."


def index_of(folder: Path, *shards: list[tuple[str, str]]) -> PassageIndex:
    """An index of documents, as (id, text), in shards."""
    made = []
    for number, documents in enumerate(shards):
        pieces = [passage for doc_id, text in documents for passage in passages_of(doc_id, text)]
        made.append(build_shard(str(folder / f"passages-{number}.zip"), pieces))
    url, digest = str(folder / "index.json"), fingerprint([str(folder)])
    storage.write_json(url, msgspec.to_builtins(StoredIndex(digest, made)))
    return load_index(url, digest)


def own(text: str) -> frozenset[str]:
    return runs_of(words_of(text))


def test_a_planted_passage_is_found_and_never_the_own_document_nor_a_near_copy(tmp_path: Path) -> None:
    document = f"{FILLER}{PLANTED} {FILLER}"
    near_copy = document.replace("in general", "in all cases").replace("remarkable", "notable", 1)
    planted = "Monodromy is what loops do to a fibre. Its eigenvalues, by Grothendieck, are roots of unity."
    others = [(f"other-{number}", f"{FILLER} {number} {FILLER}") for number in range(20)]
    index = index_of(
        tmp_path, [*others, ("own", document), ("copy", near_copy)], [("planted", planted), ("p2", planted)]
    )
    spans = ["eigenvalue of the monodromy operator", "Grothendieck"]
    found = index.find(spans, "own", own(document), 3)
    assert found[0] == Passage("p2", 0, planted), "of equals the first by id"
    assert {"own", "copy", "planted"}.isdisjoint(passage.doc_id for passage in found)
    # Without these two rules both would be there: the test can fail.
    assert {"own", "copy"} & {passage.doc_id for passage in index.find(spans, "nobody", frozenset(), 3)}
    assert index.find([], "own", own(document), 3) == [] == index.find(["zymurgy"], "own", own(document), 3)


def test_what_scores_the_same_comes_in_the_order_of_ids_however_it_was_put_in(tmp_path: Path) -> None:
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    documents = [(f"d{number:03d}", " ".join(words[number % 8 :] + words[: number % 8])) for number in range(8)]
    orders = []
    for number, order in enumerate([documents, documents[::-1], documents[3:] + documents[:3]]):
        folder = tmp_path / str(number)
        folder.mkdir()
        index = index_of(folder, order)
        orders.append([passage.doc_id for passage in index.find(["gamma", "eta"], "x", frozenset(), 8)])
    assert orders[0] == sorted(orders[0]) and len(orders[0]) > 1 and orders[0] == orders[1] == orders[2]


def test_more_copies_than_a_first_look_has_leave_room_for_what_is_behind_them(tmp_path: Path) -> None:
    copies = [(f"copy-{number:03d}", f"{PLANTED} {number}") for number in range(100)]
    index = index_of(tmp_path, [*copies, ("last", f"{FILLER} An operator, and {FILLER}")])
    found = index.find(["monodromy operator"], "x", own(PLANTED), 2)
    assert [passage.doc_id for passage in found] == ["last"]


@pytest.mark.parametrize("text", ["", "a", "word " * 1000, "x" * 3500, "One. Two.\n\n" * 300, "語" * 2500])
def test_passages_are_a_document_in_pieces(text: str) -> None:
    found = list(passages_of("d", text))
    assert "".join("".join(passage.text.split()) for passage in found) == "".join(text.split())
    assert all(0 < len(passage.text) <= PASSAGE_CHARACTERS for passage in found)
    assert [passage.number for passage in found] == list(range(len(found)))
    assert all(len(passage.text) >= PASSAGE_CHARACTERS // 2 - 3 for passage in found[:-1])


def test_an_unpacked_index_that_somebody_has_tidied_away_is_unpacked_again(tmp_path: Path) -> None:
    index_of(tmp_path, [("d", f"{PLANTED} {tmp_path}")])
    stored = read_index(str(tmp_path / "index.json"))
    assert stored is not None
    unpacked = private_folder() / f"passages-{stored.shards[0].digest}"
    (unpacked / "meta.json").unlink()
    load_index.cache_clear()
    index = load_index(str(tmp_path / "index.json"), stored.digest)
    assert [passage.doc_id for passage in index.find(["monodromy"], "x", frozenset(), 1)] == ["d"]


def test_an_index_that_is_another_or_broken_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MillError, match="is not the index that this run has made"):
        load_index(str(tmp_path / "index.json"), "a" * 32)
    (tmp_path / "passages-0.zip").write_bytes(b"no archive")
    shard = {"name": "passages-0.zip", "digest": fingerprint([str(tmp_path)]), "passages": 1}
    storage.write_json(str(tmp_path / "index.json"), {"digest": "a" * 32, "shards": [shard]})
    with pytest.raises(MillError, match=r"can't be unpacked.*delete it"):
        load_index(str(tmp_path / "index.json"), "a" * 32)
    for forged in ({"digest": "../../somewhere"}, {"name": "../passages-0.zip"}):
        storage.write_json(str(tmp_path / "index.json"), {"digest": "b" * 32, "shards": [shard | forged]})
        with pytest.raises(MillError, match="is not an index of passages"):
            load_index(str(tmp_path / "index.json"), "b" * 32)


# --- in a run ---------------------------------------------------------------------------------------------------------


def documents(number: int) -> list[dict[str, str]]:
    subjects = ["rivers", "bridges", "engines", "violins", "comets", "harbours", "glaciers", "looms"]
    return [
        {
            "id": str(i),
            "text": "".join(
                f"On {subjects[i % 8]} {i} sentence {j} says {subjects[(i + j) % 8]} and {i * j} things. "
                for j in range(24)
            ),
        }
        for i in range(number)
    ]


@pytest.fixture
def tree(write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    tiers = [
        {"name": "skip"},
        {"name": "plain", "model": "pretend", "prompt": "brief", "max_tokens": 48},
        {
            "name": "found",
            "model": "pretend",
            "prompt": "brief",
            "max_tokens": 96,
            "context": ["full", "retrieved"],
            "passages": 2,
        },
    ]
    budget = {"policy": "uniform", "thinking_tokens_per_source_token": 0.5, "tiers": tiers}
    return rehearsal_config(write_jsonl(documents(12)), budget=budget)


def keys_of(output: str) -> dict[tuple[str, str, int], str]:
    made = manifest.require(output, "augment")
    urls = manifest.file_urls(output, made, "requests")
    requests = [request for url in urls for request in storage.read_records(url, Request)]
    return {(r.tier, r.doc_id, r.segment_index): r.request_key for r in requests}


def test_a_run_shows_passages_and_another_corpus_changes_the_keys_of_its_tiers_alone(
    tree: dict[str, Any], tmp_path: Path, write_jsonl: Callable[..., str]
) -> None:
    config = from_mapping(tree)
    mill(config)
    first = keys_of(config.output)
    card = (Path(config.output) / "README.md").read_text(encoding="utf-8")
    assert "| found | full and 2 retrieved | " in card and "| plain | full | " in card
    assert {tier for tier, _, _ in first} == {"plain", "found"}

    other = write_jsonl([{"id": "book", "text": "A book on rivers, bridges and engines. " * 30}], "books.jsonl")
    books = {**tree, "source": {"path": other, "id_field": "id"}, "output": str(tmp_path / "books")}
    mill(from_mapping(books), stages=["score"])
    searched = {**tree, "retrieval": {"corpus": str(tmp_path / "books")}, "ledger": {"path": config.ledger_url}}
    with pytest.raises(RequestError, match="passages"):
        mill(from_mapping(searched), stages=["augment"])
    again = mill(from_mapping(searched), stages=["augment"], replace=True)["augment"]
    second = keys_of(config.output)
    assert first.keys() == second.keys()
    changed = {place for place in first if first[place] != second[place]}
    assert changed and {tier for tier, _, _ in changed} == {"found"}
    assert again.counts["found"] >= sum(tier == "plain" for tier, _, _ in first)


def test_prompts_hold_passages_of_other_documents_alone(
    write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]], byte_tokenizer: str
) -> None:
    tokenizer = load_tokenizer(byte_tokenizer)
    prompts: list[str] = []

    def answer(number: int, body: dict[str, Any]) -> dict[str, Any]:
        prompts.append(tokenizer.decode(np.array(body["prompt"], np.uint32)))
        return completion(body, text="a thought.")

    server = ScriptedServer(answer)
    try:
        model = {"engine": "endpoint", "name": byte_tokenizer, "served_name": SERVED, "urls": [server.url]}
        tier = {"name": "t", "model": "m", "prompt": "brief", "max_tokens": 32, "context": "retrieved", "passages": 3}
        budget = {"policy": "fixed", "fixed_tier": "t", "thinking_tokens_per_source_token": 50, "tiers": [tier]}
        tree = rehearsal_config(write_jsonl(documents(10)), models={"m": model}, budget=budget)
        config = from_mapping(tree)
        counts = mill(config, stages=["score", "augment"])["augment"].counts
        remove(config.output, Wanted(frozenset(["1"]), {}))
        asked = len(prompts)
        mill(config, stages=["score", "augment"])
        assert len(prompts) == asked, "the stages are done as they were"
    finally:
        server.stop()
    assert len(prompts) == counts["generated"] > 0
    holding = [prompt for prompt in prompts if HEAD_OF_PASSAGES in prompt]
    assert len(holding) > len(prompts) / 2
    for prompt in holding:
        shown = prompt.partition(HEAD_OF_PASSAGES)[2].partition("Passage:")[0]
        subject = prompt.partition("Passage:")[2].partition("sentence")[0].split()[-1]
        assert "[1]" in shown and "[4]" not in shown
        assert f" {subject} sentence" not in shown.replace("\n", " "), "of the own document"
    assert not storage.list_names(Output(config.output).retrieval), "text of documents that were taken down"


def killed_build(tree: dict[str, Any], second: bool) -> None:
    """Builds an index of several shards, for a process of its own, which is killed outright within the second one."""
    passages.SEGMENTS_PER_SHARD = 1
    config = from_mapping(tree)
    wanted = index_request(config)
    assert wanted is not None
    calls: list[str] = []

    def build(url: str, pieces: Any) -> Any:
        calls.append(url)
        if second and len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return build_shard(url, pieces)

    passages.build_shard = build  # type: ignore[assignment]
    passages.build_index(config, wanted, PipelineOptions([]))
    (Path(config.output) / "calls").write_text("\n".join(calls), encoding="utf-8")


def test_a_build_that_was_killed_goes_on_and_nothing_half_made_is_taken_for_an_index(
    tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.score.PART_SOURCE_BYTES", 4000)
    config = from_mapping(tree)
    mill(config, stages=["score"])
    wanted = index_request(config)
    assert wanted is not None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["apache_beam", "pipelines.passages", "tests.test_retrieval"])

    def run(second: bool) -> int | None:
        child = context.Process(target=killed_build, args=(tree, second))
        child.start()
        child.join(300)
        return child.exitcode

    assert run(True) == -signal.SIGKILL and read_index(wanted.url) is None
    there = [name for name in storage.list_names(Output(config.output).retrieval) if name.endswith(".zip")]
    assert len(there) == 1
    assert run(False) == 0
    calls = (Path(config.output) / "calls").read_text(encoding="utf-8").splitlines()
    stored = read_index(wanted.url)
    assert isinstance(stored, StoredIndex) and len(stored.shards) == len(calls) + 1 > 2
    assert there[0] not in [url.rpartition("/")[2] for url in calls], "the shard that was whole was made again"
    names = set(storage.list_names(Output(config.output).retrieval))
    assert names == {"index.json", *(shard.name for shard in stored.shards)}
    assert sum(shard.passages for shard in stored.shards) >= 12


@pytest.mark.parametrize(
    ("tier", "said"),
    [
        ({"context": ["full", "contraction"]}, "full or contraction, not both"),
        ({"context": ["full", "full"]}, "names something twice"),
        ({"context": []}, "is empty"),
        ({"context": "full", "passages": 2}, "has passages, and a context without retrieved"),
        ({"passages": 9}, "budget.tiers.2.passages.*less than or equal to 8"),
    ],
)
def test_contexts_that_can_not_be_are_refused(tree: dict[str, Any], tier: dict[str, Any], said: str) -> None:
    tree["budget"]["tiers"][2] |= tier
    with pytest.raises(RequestError, match=said):
        from_mapping(tree)


def test_a_corpus_that_nobody_searches_or_that_is_not_there_is_told(tree: dict[str, Any], tmp_path: Path) -> None:
    searched = {**tree, "retrieval": {"corpus": str(tmp_path / "nowhere")}}
    with pytest.raises(MillError, match=r"retrieval\.corpus"):
        mill(from_mapping(searched), stages=["score", "augment"])
    tree["budget"]["tiers"].pop()
    with pytest.raises(RequestError, match="no tier shows passages"):
        from_mapping({**tree, "retrieval": {"corpus": "out/books"}})
    assert not [key for tier in budget_section(from_mapping(tree).budget)["tiers"] for key in tier if key == "passages"]
