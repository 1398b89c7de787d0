"""Inspect: what is wanted is shown, in colours and in plain text; what isn't there is told with what is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from pipelines.documents.blocks import Unit
from pipelines.documents.inspect import Wanted, inspect
from pipelines.documents.sample import look
from pipelines.documents.terminal import bracketed, coloured
from sharding.errors import RequestError
from sharding.storage import manifest
from tests.test_report import HOSTILE, milled, read_stages

ANSI = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: str) -> str:
    return milled(tmp_path_factory.mktemp("inspect"), byte_tokenizer, layout="after_segment")


def shown(output: str, *, plain: bool = True, width: int = 100, **wanted: object) -> str:
    console = Console(
        width=width,
        force_terminal=not plain,
        color_system=None if plain else "truecolor",
        highlight=False,
        record=False,
    )
    with console.capture() as captured:
        for document in inspect(output, Wanted(**wanted), plain=plain):  # type: ignore[arg-type]
            console.print(document, soft_wrap=plain)
    return captured.get()


def test_a_document_is_whole(output: str) -> None:
    text = shown(output, doc_id="doc 3")
    assert "=== doc 3: " in text
    without_brackets = text.replace("⟦", "").replace("⟧", "")
    source = "".join(re.split(r"\n\n?--- [^\n]+\n", without_brackets))
    assert source.count("Document number 3 says: é日本 <b>3</b>.") >= 15
    assert "\x1b" not in text


@pytest.mark.parametrize("tier", ["brief", "deep", "skip"])
def test_segments_of_a_tier(output: str, tier: str) -> None:
    text = shown(output, tier=tier, limit=2)
    headings = re.findall(r"^--- segment \d+, (\w+), [\d,]+ nats above 2$", text, re.MULTILINE)
    assert headings and set(headings) == {tier}
    assert 1 <= text.count("=== ") <= 2


def test_segments_with_a_reason(output: str) -> None:
    reasons = {r for c in look(output, read_stages(output)).candidates for r in c.reasons}
    assert reasons
    for reason in reasons:
        text = shown(output, rejected=reason, limit=1)
        assert f"rejected, {reason}" in text or f", {reason}" in text


def test_one_segment(output: str) -> None:
    candidate = look(output, read_stages(output)).candidates[0]
    text = shown(output, segment_id=candidate.segment_id)
    assert re.findall(r"^--- segment (\d+),", text, re.MULTILINE) == [str(candidate.segment_index)]
    assert f"sample {candidate.sample}: " in text


def test_in_colours(output: str) -> None:
    text = shown(output, plain=False, tier="deep", limit=1)
    grounds = set(re.findall(r"48;2;(\d+;\d+;\d+)", text))
    assert len(grounds) > 5, "tokens of different nats have different grounds"
    assert "candidates, " in ANSI.sub("", text) and "╭" in text
    assert max(map(len, ANSI.sub("", text).splitlines())) <= 100


def test_hostile_text_steers_no_terminal(output: str) -> None:
    for plain in (True, False):
        text = shown(output, plain=plain, doc_id=HOSTILE, width=2_000)
        assert "\x1b[31m" not in text and "\u202e" not in text
        assert "␛" in ANSI.sub("", text)


def test_stronger_nats_stronger_ground() -> None:
    text = coloured([Unit("a", 0.0, 0.0), Unit("b", 4.0, 0.0), Unit("c", 30.0, 0.0)])
    styles = {text.plain[span.start]: str(span.style) for span in text.spans}
    assert not styles.get("a")
    assert styles["b"] != styles["c"]


def test_brackets_join_neighbours_and_go_by_memory() -> None:
    units = [Unit("a", 3, 0), Unit("b", 4, 0), Unit("c", 1, 0), Unit("d", 9, 0, memory=0.5), Unit("e", 9, 0)]
    assert bracketed(units, 2.0).plain == "⟦ab⟧cd⟦e⟧"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"tier": "dep"}, r"--tier: 'dep' is not one of skip, brief, deep"),
        ({"rejected": "ugly"}, r"--rejected: 'ugly' is not one of \w+ \(\d+\)"),
        ({"doc_id": "dok 3"}, r"--doc: there is no document 'dok 3'; some that are there: doc 3, "),
        ({"segment_id": "doc 3"}, r"--segment: 'doc 3' is no segment id; it is DOCUMENT#INDEX"),
        ({"segment_id": "doc 33#0"}, r"--segment: there is no document 'doc 33'; .*doc 3"),
        ({"segment_id": "doc 3#77"}, r"document 'doc 3' has no such segment; it has \d+ \(from 0\)"),
        ({"segment_id": "doc 3#0", "doc_id": "doc 4"}, r"--segment: 'doc 3#0' is not of the document that --doc names"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(output: str, wanted: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        shown(output, **wanted)


def test_before_there_is_a_plan(output: str, tmp_path: Path) -> None:
    scored = manifest.require(output, "score")
    folder = tmp_path / "stages" / "score"
    folder.mkdir(parents=True)
    for url in [*manifest.file_urls(output, scored, "segments"), manifest.manifest_url(output, "score")]:
        (folder / Path(url).name).write_bytes(Path(url).read_bytes())
    assert "--- segment 0, " in shown(str(tmp_path), doc_id="doc 3")
    with pytest.raises(RequestError, match="before the augment stage has planned"):
        shown(str(tmp_path), tier="deep")
    with pytest.raises(RequestError, match="before the select stage has run"):
        shown(str(tmp_path), rejected="loop")


@pytest.mark.slow
def test_the_commands(output: str) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipelines.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "80"})

    done = run("inspect", output, "--doc", "doc 3")
    assert done.returncode == 0 and "=== doc 3" in done.stdout and "\x1b" not in done.stdout
    assert any(len(line) > 80 for line in done.stdout.splitlines()), "plain text is not wrapped"
    refused = run("inspect", output, "--tier", "dep")
    assert refused.returncode == 2 and "skip, brief, deep" in refused.stderr and not refused.stdout
    written = run("report", output)
    assert written.returncode == 0 and Path(output, "report.html").stat().st_size > 50_000
    assert f"{output}/report.html" in written.stdout
