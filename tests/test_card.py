"""Card and Croissant file: what the hub, `datasets` and mlcroissant make of them, and that nothing is made up."""

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from datasets import DatasetInfo, Features, load_dataset
from datasets.distributed import split_dataset_by_node
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard
from huggingface_hub.repocard import metadata_load

from pipelines import card
from pipelines.card import croissant, render
from pipelines.card.front_matter import features, size_category
from pipelines.card.training_content import SECTIONS, TO_BE_FILLED_IN, training_content
from pipelines.config import TrainingContentSection
from pipelines.run import mill
from pipelines.secrets import without_secrets
from pipelines.verify import verify
from pipelines.yaml_config import from_mapping
from sharding.records.families import ROWS
from sharding.storage import manifest
from sharding.storage.manifest import STAGES, Manifest

SIZE_CATEGORIES = "n<1K 1K<n<10K 10K<n<100K 100K<n<1M 1M<n<10M 10M<n<100M 100M<n<1B 1B<n<10B 10B<n<100B 100B<n<1T n>1T"
"""The hub's vocabulary, as huggingface_hub documents it for `DatasetCardData`."""

SECRET = "hunter2"

Stages = dict[str, Manifest]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: str) -> Path:
    folder = tmp_path_factory.mktemp("card")
    with (folder / "source.jsonl").open("wb") as file:
        for number in range(30):
            file.write(msgspec.json.encode({"text": f"Document {number} says {number * 7}. " * (4 + number)}) + b"\n")
    tree = {
        "source": {"path": str(folder / "source.jsonl")},
        "output": str(folder / "out"),
        "tokenizer": byte_tokenizer,
        "difficulty": {"scorer": "rehearsal", "segment_tokens": 64},
        "models": {"pretend": {"engine": "rehearsal", "name": f"https://me:{SECRET}@example.org/model?token={SECRET}"}},
        "budget": {
            "thinking_tokens_per_source_token": 0.2,
            "tiers": [{"name": "skip"}, {"name": "t", "model": "pretend", "prompt": "brief", "max_tokens": 48}],
        },
        "pack": {"sequence_length": 128, "num_shards": 3, "validation_fraction": 0.2},
        "card": {
            "name": "Thoughts on numbers: a test",
            "language": ["en", "de"],
            "license": "cc0-1.0",
            "source_datasets": ["acme/numbers"],
            "generator_license": "apache-2.0, outputs are free",
        },
    }
    mill(from_mapping(tree))
    return folder / "out"


@pytest.fixture(scope="module")
def stages(output: Path) -> Stages:
    return {stage: manifest.require(str(output), stage) for stage in STAGES}


def changed(stages: Stages, stage: str, **parts: Mapping[str, Any]) -> Stages:
    """The manifests with some keys of one stage's `counts`, `facts` or `config` replaced."""
    before = stages[stage]
    after = {part: {**getattr(before, part), **values} for part, values in parts.items()}
    return stages | {stage: msgspec.structs.replace(before, **after)}


# --- the YAML ---------------------------------------------------------------------------------------------------------


def test_the_yaml_is_complete(output: Path, stages: Stages) -> None:
    found = metadata_load(output / "README.md")
    assert found is not None
    packed = stages["pack"]
    assert found["language"] == ["en", "de"] and all(re.fullmatch("[a-z]{2,3}", code) for code in found["language"])
    assert found["license"] == "cc0-1.0"
    assert found["source_datasets"] == ["acme/numbers"]
    assert found["pretty_name"] == "Thoughts on numbers: a test"
    assert found["task_categories"] == ["text-generation"]
    assert found["size_categories"] == ["n<1K"]
    assert {"thoughtmill", "rehearsal"} <= set(found["tags"])
    (info,) = [found["dataset_info"]]
    rows = Counter[str]()
    for entry in packed.files["shards"]:
        rows[entry.name.removeprefix("data/").split("-")[0]] += entry.rows
    assert {split["name"]: split["num_examples"] for split in info["splits"]} == rows
    assert info["download_size"] == sum(path.stat().st_size for path in (output / "data").iterdir())
    assert info["dataset_size"] == sum(split["num_bytes"] for split in info["splits"]) == sum(rows.values()) * 128 * 3


def test_the_libraries_of_the_hub_read_it(output: Path) -> None:
    loaded = DatasetCard.load(output / "README.md")
    assert loaded.text.lstrip().startswith("# Thoughts on numbers: a test")
    (config,) = MetadataConfigs.from_dataset_card_data(loaded.data).values()
    assert [file["split"] for file in config["data_files"]] == ["train", "validation"]
    (info,) = DatasetInfosDict.from_dataset_card_data(loaded.data).values()
    assert isinstance(info, DatasetInfo)
    assert loaded.data.size_categories is not None and loaded.data.size_categories[0] in SIZE_CATEGORIES.split()


@pytest.mark.parametrize("vocab_size", [65_536, 65_537])
@pytest.mark.parametrize("policy", ["all", "source_only"])
def test_features_are_those_of_the_shards(stages: Stages, vocab_size: int, policy: str) -> None:
    pack = {**stages["pack"].config["pack"], "loss_mask": policy}
    packed = changed(stages, "pack", facts={"vocab_size": vocab_size}, config={"pack": pack})["pack"]
    schema = ROWS.schema(sequence_length=128, vocab_size=vocab_size, with_loss_mask=policy != "all")
    assert features(packed) == Features.from_arrow_schema(schema)._to_yaml_list()


def test_size_categories_are_the_hubs() -> None:
    rows = [0, 999, 1_000, 10**6 - 1, 10**6, 10**9 - 1, 10**9, 10**10, 10**12 - 1, 10**12]
    named = [size_category(n) for n in rows]
    assert named == [
        *("n<1K", "n<1K", "1K<n<10K", "100K<n<1M", "1M<n<10M", "100M<n<1B"),
        *("1B<n<10B", "10B<n<100B", "100B<n<1T", "n>1T"),
    ]
    assert {size_category(10**power) for power in range(15)} == set(SIZE_CATEGORIES.split())


def test_without_what_only_the_owner_knows(stages: Stages) -> None:
    about = {"name": "x", "language": [], "license": None, "source_datasets": []}
    text = render(changed(stages, "pack", config={"card": about}))
    assert "license:" not in text and "language:" not in text and "source_datasets" not in text
    assert "is not stated here" in text


# --- loading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
def test_load_dataset_opens_the_folder(output: Path, stages: Stages, tmp_path: Path, streaming: bool) -> None:
    opened = load_dataset(str(output), streaming=streaming, cache_dir=str(tmp_path))
    assert set(opened) == {"train", "validation"}
    rows = {split: sum(1 for _ in opened[split]) for split in opened}
    assert sum(rows.values()) == stages["pack"].counts["rows"]
    assert set(next(iter(opened["train"]))) == set(
        ROWS.schema(sequence_length=128, vocab_size=stages["pack"].facts["vocab_size"], with_loss_mask=False).names
    )


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_see_every_row_once(output: Path, tmp_path: Path, world_size: int) -> None:
    def keys(rows: Any) -> Counter[tuple[int, ...]]:
        return Counter(tuple(row["input_ids"]) for row in rows)

    opened = load_dataset(str(output), split="train", streaming=True, cache_dir=str(tmp_path))
    ranks = [keys(split_dataset_by_node(opened, rank, world_size)) for rank in range(world_size)]
    assert sum(ranks, Counter()) == keys(opened) and min(map(len, ranks)) > 0


# --- the text ---------------------------------------------------------------------------------------------------------

ACCOUNT = {
    "tier": "deep",
    "model": "large",
    "prompt": "expert",
    "candidates": 4_321,
    "kept": 1_234,
    "rejected": 3_087,
    "kept_share": 0.2856,
    "thought_tokens": 987_654,
    "kept_thought_tokens": 345_678,
    "reasons": {},
    "objections": {},
    "gains": {
        "heldout_first": {"mean": 2.61, "interval95": [1.5, 3.72], "segments": 1_111, "documents": 99},
        "heldout": {"mean": 0.7, "interval95": None, "segments": 1_111, "documents": 5},
        "null_first": {"mean": -0.1, "interval95": [-0.7, 0.5], "segments": 1_111, "documents": 99},
    },
    "lengths": {"kept": {"candidates": 9, "mean_thought_tokens": 80.4, "nats_per_1000_thought_tokens": 8.39}},
}
DECONTAMINATION = {"action": "remove", "benchmarks": {"gsm8k": {"records": 1_319, "ngrams": 70_707, "too_short": 12}}}


@pytest.mark.parametrize(
    ("stage", "parts", "says"),
    [
        ("score", {"counts": {"documents": 31_415, "documents_in": 31_420}}, ["31,420 records gave 31,415 documents"]),
        ("score", {"counts": {"quarantined": 5, "quarantined.no_text": 5}}, ["5 could not be taken in (no_text 5)"]),
        ("score", {"counts": {"documents_duplicate": 6, "duplicates_dropped": 4}}, ["6 exact copies", "4 of them"]),
        ("score", {"config": {"source": {"path": "s3://b/x", "name": "web"}}}, ["| web | `s3://b/x` |"]),
        ("score", {"facts": {"memory": {"url": "x"}}}, ["n-gram memory of the corpus"]),
        ("augment", {"counts": {"thought_tokens": 27_182}}, ["27,182 generated"]),
        ("augment", {"facts": {"warnings": ["model large (m) has no thinking mode"]}}, ["- Model large (m) has no"]),
        ("augment", {"facts": {"cut_points_nats": [12.25, 99.5]}}, ["12.2, 99.5 nats"]),
        ("augment", {"facts": {"unit": "dollars", "target_spend": 1234.5}}, ["1,234.50 dollars"]),
        ("augment", {"config": {"sampling": {"temperature": 0.65}}}, ["Decoding: temperature 0.65."]),
        ("select", {"counts": {"rejected.loop": 16_180}}, ["| loop | 16,180 |"]),
        (
            "select",
            {"facts": {"account": [ACCOUNT]}},
            ["| deep | large | expert | 4,321 | 1,234 | 987,654 | 345,678 |"],
        ),
        (
            "select",
            {"facts": {"account": [ACCOUNT]}},
            [
                "| 1,111 | +2.61 (+1.50 to +3.72) |  | +0.70 (too few to say: 5 documents) | -0.10 (-0.70 to +0.50) |"
                "  | 80 (+8.4) |  |"
            ],
        ),
        (
            "select",
            {"counts": {"closed.natural": 300, "closed.cut": 100, "closed.forced": 0}},
            ["of the 400 candidates 75.00% ended by themselves; 0.00% reached", "25.00% were cut off at their cap"],
        ),
        (
            "select",
            {
                "facts": {"decontamination": DECONTAMINATION},
                "counts": {"documents_contaminated": 77, "candidates_contaminated": 88, "contaminated.gsm8k": 77},
            },
            ["left out: 77 documents and 88 traces", "| gsm8k | 70,707 | 1,319 | 12 | 77 |"],
        ),
        ("pack", {"counts": {"documents_cut": 3, "documents": 30}}, ["| documents cut | 3 (10.00%)"]),
        ("pack", {"counts": {"thoughts_cut": 5, "thoughts": 10}}, ["| thoughts cut | 5 (50.00%), lost their end |"]),
        (
            "pack",
            {"counts": {"documents_left_out": 44, "document_copies": 55}},
            ["their source | 44 |", "first | 55 |"],
        ),
        ("pack", {"facts": {"tokenizer_fingerprint": "abcdef"}}, ["| tokenizer sha256 | `abcdef` |"]),
        ("pack", {"facts": {"versions": {"thoughtmill": "9.9"}}}, ["Versions: thoughtmill 9.9."]),
    ],
)
def test_the_text_is_what_the_manifests_say(stages: Stages, stage: str, parts: Any, says: list[str]) -> None:
    before, after = render(stages), render(changed(stages, stage, **parts))
    for words in says:
        assert words in after and words not in before


def test_delimiters_loss_mask_and_rehearsal(stages: Stages) -> None:
    pack = {"thought_open": "<t>", "thought_close": "", "document_end": "|end|", "loss_mask": "thoughts_only"}
    text = render(changed(stages, "pack", config={"pack": {**stages["pack"].config["pack"], **pack}}))
    assert "| before a thought | `'<t>'` |" in text and "| after a thought | nothing |" in text
    assert r"| after a document | `'\|end\|'` as ids [" in text
    assert "`thoughts_only`, in the column `loss_mask`" in text and "- name: loss_mask" in text
    assert text.count("rehearsal: not for training") == 2
    real = render(stages | {"pack": msgspec.structs.replace(stages["pack"], rehearsal=False)})
    assert "rehearsal: not for training" not in real and "- rehearsal" not in real
    assert "Its licence: apache-2.0, outputs are free" in real


def test_the_picture_counts_every_segment(stages: Stages) -> None:
    (picture,) = re.findall(r"```text\n(.*?)```", render(stages), re.DOTALL)
    lines = [re.fullmatch(r" *(\d+) to (\d+) +█* ([\d,]+)", line) for line in picture.splitlines()[1:]]
    found = [(int(line[1]), int(line[2]), int(line[3].replace(",", ""))) for line in lines if line]
    assert len(found) == len(lines) > 3
    assert sum(count for *_, count in found) == stages["score"].counts["segments"]
    assert all(high == next_low for (_, high, _), (next_low, *_) in itertools.pairwise(found))


# --- secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("http://me:pw@host:80/v1", "http://REDACTED@host:80/v1"),
        ("s3://AKIA:sec/ret@bucket/x", "s3://REDACTED@bucket/x"),
        ("s3://AKIA:sec%2Fret@bucket/x", "s3://REDACTED@bucket/x"),
        ("https://h/x?a=1&api_key=pw#f", "https://h/x?a=1&api_key=REDACTED#REDACTED"),
        ("https://h/x?X-Amz-Signature=pw&y=2", "https://h/x?X-Amz-Signature=REDACTED&y=2"),
        ("https://h/x?sig=pw", "https://h/x?sig=REDACTED"),
        ("see `https://u@h/x`, and a@b.c", "see `https://REDACTED@h/x`, and a@b.c"),
        ("s3://bucket/raw/*.jsonl.zst", "s3://bucket/raw/*.jsonl.zst"),
        ("https://huggingface.co/datasets/a/b", "https://huggingface.co/datasets/a/b"),
    ],
)
def test_urls_lose_what_is_secret(text: str, clean: str) -> None:
    assert without_secrets(text) == clean


def test_nothing_that_is_published_holds_a_secret(output: Path) -> None:
    for name in ("README.md", "config.yaml", "croissant.json", "MANIFEST.json"):
        assert SECRET not in (output / name).read_text(), name


# --- croissant --------------------------------------------------------------------------------------------------------


def test_croissant_is_valid(output: Path) -> None:
    mlcroissant = pytest.importorskip("mlcroissant")
    opened = mlcroissant.Dataset(jsonld=str(output / "croissant.json"))
    assert not opened.metadata.issues.errors
    missing = {re.sub(r".*/(\w+)\".*", r"\1", warning) for warning in opened.metadata.issues.warnings}
    assert missing == {"citeAs", "datePublished"}  # which no manifest knows
    assert [record_set.name for record_set in opened.metadata.record_sets] == ["train", "validation"]


def test_croissant_says_what_responsible_ai_asks_for(output: Path, stages: Stages) -> None:
    mlcroissant = pytest.importorskip("mlcroissant")
    opened = mlcroissant.Dataset(jsonld=str(output / "croissant.json"))
    found = opened.metadata
    assert found.data_limitations and "not for training" in " ".join(found.data_limitations)
    assert found.data_biases and found.data_preprocessing_protocol and found.machine_annotation_tools
    assert "30 records gave 30 documents" in found.data_preprocessing_protocol[0]
    assert not found.personal_sensitive_information
    told = {**stages["pack"].config["card"], "personal_information": "names of authors", "biases": "one country"}
    described = croissant.describe(changed(stages, "pack", config={"card": told}), "about")
    assert described["rai:personalSensitiveInformation"] == "names of authors"
    assert described["rai:dataBiases"][-1] == "one country"


def test_training_content_has_what_is_known_and_marks_the_rest(stages: Stages) -> None:
    rows = {number: said for number, _, said in training_content(stages)}
    assert list(rows) == list(SECTIONS) == list(get_args(TrainingContentSection))
    # As the template calls them, so that who fills it in finds them.
    assert SECTIONS["2.2"].startswith("private non-publicly available datasets obtained from third parties")
    assert SECTIONS["3.1"] == "respect of reservation of rights from text and data mining exception or limitation"
    assert SECTIONS["3.3"] == "other information"
    assert "Text; less than 1 billion tokens" in rows["1.3"] and "en, de" in rows["1.3"]
    assert rows["2.1"] == "Named by the owner of the corpus: https://huggingface.co/datasets/acme/numbers."
    thoughts = stages["pack"].counts["thoughts"]
    assert rows["2.5"].startswith(f"{thoughts:,} thoughts of ") and "apache-2.0, outputs are free" in rows["2.5"]
    assert SECRET not in render(stages) and "source.jsonl" in rows["2.6"]
    assert all(rows[number] == TO_BE_FILLED_IN for number in ("1.1", "1.2", "2.2", "2.3", "2.4", "3.1", "3.2"))
    card = {**stages["pack"].config["card"], "training_content": {"2.3": "Nothing | was crawled."}}
    text = render(changed(stages, "pack", config={"card": card}))
    assert r"| 2.3 | data crawled and scraped from online sources | Nothing \| was crawled. |" in text
    many = render(changed(stages, "pack", counts={"tokens_source": 2 * 10**9}))
    assert "1 billion to 10 trillion tokens" in many
    removals = [{"at": "2026-11-26T12:00:00+00:00", "documents": number} for number in (2, 1)]
    rows = {number: said for number, _, said in training_content(changed(stages, "pack", facts={"removals": removals}))}
    assert "; 3 documents taken down from the finished corpus" in rows["3.3"]
    without = {**stages["pack"].config["card"], "source_datasets": []}
    rows = {number: said for number, _, said in training_content(changed(stages, "pack", config={"card": without}))}
    assert rows["2.1"] == TO_BE_FILLED_IN


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d["distribution"][-1].pop("includes"),
        lambda d: d["recordSet"][0]["field"][0]["source"]["fileSet"].update({"@id": "nothing"}),
    ],
)
def test_the_validation_can_fail(output: Path, tmp_path: Path, damage: Callable[[dict[str, Any]], Any]) -> None:
    mlcroissant = pytest.importorskip("mlcroissant")
    described = json.loads((output / "croissant.json").read_text())
    damage(described)
    (tmp_path / "croissant.json").write_text(json.dumps(described))
    with pytest.raises(mlcroissant.ValidationError):
        mlcroissant.Dataset(jsonld=str(tmp_path / "croissant.json"))


def test_croissant_names_every_shard_and_column(output: Path, stages: Stages) -> None:
    described = json.loads((output / "croissant.json").read_text())
    files = [part for part in described["distribution"] if part["@type"] == "cr:FileObject"]
    on_disk = {f"data/{path.name}": path.read_bytes() for path in (output / "data").iterdir()}
    assert {file["contentUrl"]: file["sha256"] for file in files} == {
        name: hashlib.sha256(data).hexdigest() for name, data in on_disk.items()
    }
    assert {file["contentUrl"]: file["contentSize"] for file in files} == {
        name: f"{len(data)} B" for name, data in on_disk.items()
    }
    sets = [part["includes"] for part in described["distribution"] if part["@type"] == "cr:FileSet"]
    assert sum(len(list(output.glob(pattern))) for pattern in sets) == len(on_disk)
    schema = ROWS.schema(sequence_length=128, vocab_size=stages["pack"].facts["vocab_size"])
    for record_set in described["recordSet"]:
        assert [field["name"] for field in record_set["field"]] == schema.names
        assert [field["source"]["extract"]["column"] for field in record_set["field"]] == schema.names


def test_what_stands_beside_the_shards_is_no_problem(output: Path) -> None:
    assert (output / "croissant.json").exists()
    assert verify(str(output), deep=True).ok


def test_a_card_is_made_of_manifests_alone(output: Path, stages: Stages, tmp_path: Path) -> None:
    card.write(str(tmp_path), stages)
    for name in ("README.md", "croissant.json"):
        assert (tmp_path / name).read_bytes() == (output / name).read_bytes()
