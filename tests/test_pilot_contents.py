"""A pilot is of what the names in its config stand for: with other weights, prompts or code behind them it is none."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from augment.ledger.reading import read_ledger
from pipelines.augment import Augment
from pipelines.config import MillConfig
from pipelines.plan import make_plan
from pipelines.plan.evidence import gather
from pipelines.plan.measured import Pilot, read_pilot, write_pilot
from pipelines.run import mill
from pipelines.yaml_config import from_mapping
from sharding.storage import manifest

JUDGE = "Grade this thought from 0 to 10.\n\n{text}\n\n{thought}\n\nGrade:"
RECIPE = "async def own(segment, generate):\n    return await generate('draft', max_tokens=48)\n"


@pytest.fixture
def tree(write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    texts = [f"text {i} of many words and {i * i} numbers, and of some more. " * 9 for i in range(8)]
    return rehearsal_config(write_jsonl([{"id": str(i), "text": text} for i, text in enumerate(texts)]))


def judged_by(tree: dict[str, Any], revision: str, **judge: Any) -> dict[str, Any]:
    """The config with a judge beside the generator, of this revision."""
    critic = {"engine": "rehearsal", "name": "critic", "revision": revision}
    asked = {"model": "critic", "max_tokens": 32, **judge}
    return {**tree, "models": {**tree["models"], "critic": critic}, "select": {"value": "judge", "judge": asked}}


def test_another_judge_by_the_old_name_is_asked_anew(tree: dict[str, Any]) -> None:
    config, other = (from_mapping(judged_by(tree, revision)) for revision in ("one", "other"))
    mill(config, stages=["score"])
    scored = manifest.require(config.output, "score")

    def verdicts() -> int:
        return sum(bool(row.step) for row in read_ledger(config.ledger_url))

    make_plan(config, pilot=6)
    asked = verdicts()
    assert asked and read_pilot(config, scored)[0] is not None
    found, notes = read_pilot(other, scored)
    assert found is None and "(the content of the judge): add --pilot" in notes[0]
    make_plan(other, pilot=6)
    assert verdicts() == 2 * asked and read_pilot(other, scored)[0] is not None
    assert read_pilot(config, scored)[0] is None


CONTENTS = {
    "scorer/config.json": "the content of the scorer",
    "judge.txt": "the content of the judge",
    "bench.jsonl": "the content of the benchmarks",
    "own.py": "the content of the recipe .*own",
}
"""Files that the config of `named` names → what another pilot says has changed with them."""


@pytest.fixture
def named(tree: dict[str, Any], tmp_path: Path) -> tuple[MillConfig, Path]:
    """A config that names files of all kinds, scored, with a pilot; and their folder."""
    folder = tmp_path / "named"
    (folder / "scorer").mkdir(parents=True)
    (folder / "scorer" / "config.json").write_text("{}", encoding="utf-8")
    (folder / "judge.txt").write_text(JUDGE, encoding="utf-8")
    (folder / "own.py").write_text(RECIPE, encoding="utf-8")
    (folder / "bench.jsonl").write_text('{"question": "Who is it that mills so late at night?"}\n', encoding="utf-8")
    tree = judged_by(tree, "one", prompt=str(folder / "judge.txt"))
    tree["select"]["gain"] = {"scorer": {"scorer": "causal_lm", "model": str(folder / "scorer")}}
    tree["select"]["decontaminate"] = {"paths": [str(folder / "bench.jsonl")]}
    own = {"name": "own", "model": "pretend", "prompt": "brief", "max_tokens": 64, "recipe": f"{folder}/own.py:own"}
    tree["budget"]["tiers"].append(own)
    plain = {**tree, "select": {}, "models": {"pretend": tree["models"]["pretend"]}}
    mill(from_mapping(plain), stages=["score"])
    config = from_mapping(tree)
    write_pilot(config, manifest.require(config.output, "score"), Pilot(tiers={}, tokens_per_second={}), {})
    return config, folder


def test_another_content_behind_a_name_is_another_pilot(named: tuple[MillConfig, Path]) -> None:
    config, folder = named
    scored, stage = manifest.require(config.output, "score"), Augment(config).fingerprint
    for file, what in CONTENTS.items():
        assert read_pilot(config, scored)[0] is not None
        before = (folder / file).read_text(encoding="utf-8")
        (folder / file).write_text(f"{before}\n# more", encoding="utf-8")
        found, [note] = read_pilot(config, scored)
        assert found is None and re.search(rf"measured with another config \({what}\)", note), note
        # No thought is another for it but those of the recipe.
        assert (Augment(config).fingerprint != stage) is (file == "own.py")
        (folder / file).write_text(before, encoding="utf-8")
    shutil.rmtree(folder / "scorer")
    assert read_pilot(config, scored)[0] is not None, "where it was made there was one, and here nothing is held to it"


def test_scores_of_another_scorer_or_tokenizer_want_another_pilot(named: tuple[MillConfig, Path]) -> None:
    config, _ = named
    scored = manifest.require(config.output, "score")
    other = msgspec.structs.replace(scored, inputs={**scored.inputs, "scorer": "0" * 16})
    assert "the scorer of the scores" in read_pilot(config, other)[1][0]
    assert gather(config, 4).scored is not None
    manifest.write(config.output, msgspec.structs.replace(scored, inputs={**scored.inputs, "tokenizer": "0" * 32}))
    evidence = gather(config, 4)
    assert evidence.scored is None and "the tokenizer itself" in evidence.notes[0]
