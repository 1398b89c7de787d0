"""The report: every document as the corpus has it, hostile text harmless, partial outputs told, bounded reading."""

from __future__ import annotations

import io
import json
import re
import shutil
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from rich.console import Console

from augment.selection.account import in_words
from benchmarks import paired_gains
from difficulty.budget.histogram import DifficultyHistogram
from pipelines import report
from pipelines.cli import summary
from pipelines.documents import sample
from pipelines.documents.blocks import DocumentView, Mark, Source, Thought, Unit
from pipelines.documents.reader import Reader
from pipelines.report import charts, room, svg
from pipelines.report.charts import Series
from pipelines.report.facts import quantity
from pipelines.run import mill
from pipelines.terminal import number, visible
from pipelines.yaml_config import from_mapping
from sharding import records, storage
from sharding.errors import MillError
from sharding.hashing import partition_of
from sharding.models.tokenizer import load_tokenizer
from sharding.records.families import KEPT, SEGMENTS
from sharding.records.types import Candidate, ScoredSegment
from sharding.storage import manifest
from sharding.storage.manifest import Manifest
from sharding.storage.output import Output
from tests.conftest import rehearsal_tree

HOSTILE = (
    '</i></div></script></style><script>document.title = "gone"</script><img src=x onerror="hacked = 1">\u202e\x1b[31m'
)
VOID = {"meta", "link", "input", "br", "img"}

Stages = dict[str, Manifest | None]


class Outline(HTMLParser):
    """Tags and attributes of a page, the ids in it, and whether its elements close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def ids(self) -> list[str]:
        return [value or "" for name, value in self.attributes if name == "id"]


def milled(folder: Path, tokenizer: str, stages: tuple[str, ...] = manifest.STAGES, **sections: Any) -> str:
    """A finished rehearsal with hostile ids and texts."""
    source = folder / "source.jsonl"
    documents = [
        {"id": f"doc {i}", "text": f"Document number {i} says: é日本 <b>{i}</b>. " * (6 + 5 * i)} for i in range(8)
    ]
    documents.append({"id": HOSTILE, "text": HOSTILE * 30})
    source.write_text("".join(json.dumps(document) + "\n" for document in documents))
    tree = rehearsal_tree(folder, tokenizer, str(source), **sections)
    mill(from_mapping(tree), stages=stages)
    return str(tree["output"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: str) -> str:
    select = {"value": "continuation_gain", "gain": {"hold_back_tokens": 16}}
    models = {"pretend": {"engine": "rehearsal", "name": "pretend", "dollars_per_million_tokens": 2.0}}
    return milled(tmp_path_factory.mktemp("finished"), byte_tokenizer, select=select, models=models)


@pytest.fixture
def copied(finished: str, tmp_path: Path) -> str:
    """A finished output to damage."""
    return str(shutil.copytree(finished, tmp_path / "copied"))


def read_stages(output: str) -> Stages:
    return {stage: manifest.read(output, stage) for stage in manifest.STAGES}


def view_all(output: str, stages: Stages) -> list[DocumentView]:
    reader = Reader(output, stages)
    seen = sample.look(output, stages)
    return [reader.view(document) for document in sample.read_documents(output, stages, seen.doc_ids).values()]


def text_of(view: DocumentView) -> str:
    parts = []
    for block in view.blocks:
        if isinstance(block, Source):
            parts += [unit.text for unit in block.units]
        elif isinstance(block, Thought):
            parts += [block.before, block.candidate.text, block.after]
        else:
            parts.append(block.text)
    return "".join(parts)


# --- documents as the corpus has them ---------------------------------------------------------------------------------


def test_documents_read_as_they_stand_in_the_shards(finished: str) -> None:
    stages = read_stages(finished)
    packed = stages["pack"]
    assert packed is not None
    tokenizer = load_tokenizer(packed.config["tokenizer"])
    pieces: dict[str, dict[int, np.ndarray]] = {}
    for url in manifest.file_urls(finished, packed, "shards"):
        for row in storage.read_records(url, records.Row):
            ends = np.cumsum(row.seq_lengths)
            for doc_id, start, first, end in zip(
                row.doc_ids, row.source_starts, ends - row.seq_lengths, ends, strict=True
            ):
                pieces.setdefault(doc_id, {})[int(start)] = row.input_ids[first:end]
    views = view_all(finished, stages)
    assert {document.doc_id for document in views} == set(pieces)
    assert any(document.thoughts for document in views)
    for document in views:
        stored = np.concatenate([ids for _, ids in sorted(pieces[document.doc_id].items())])
        assert text_of(document) == tokenizer.decode(stored)


def packed_otherwise(finished: str, layout: str, **pack: Any) -> Stages:
    """The stages, as if the last one had packed in another way."""
    stages = read_stages(finished)
    packed = stages["pack"]
    assert packed is not None
    config = {**packed.config, "layout": layout, "pack": {**packed.config["pack"], **pack}}
    return {**stages, "pack": msgspec.structs.replace(packed, config=config)}


@pytest.mark.parametrize("delimiters", [{}, {"thought_open": "", "thought_close": ""}], ids=["delimited", "bare"])
@pytest.mark.parametrize("layout", ["after_document", "after_segment", "before_segment", "at_hard_span"])
def test_every_layout_shows_all_source_and_every_thought(
    finished: str, layout: str, delimiters: dict[str, str]
) -> None:
    stages = packed_otherwise(finished, layout, **delimiters)
    selected = stages["select"]
    assert selected is not None
    views = view_all(finished, stages)
    plain = view_all(finished, {**stages, "pack": None})
    for document, as_selected in zip(views, plain, strict=True):
        sources, expected = (
            "".join(unit.text for block in one.blocks if isinstance(block, Source) for unit in block.units)
            for one in (document, as_selected)
        )
        assert sources == expected
        closing = [block.segment.index for block in document.blocks if isinstance(block, Source) and block.closes]
        assert closing == list(range(len(document.segments)))
    shown = [block.candidate.key for one in views for block in one.blocks if isinstance(block, Thought)]
    assert len(shown) == len(set(shown)) == selected.counts["kept"]


def test_thoughts_without_room_say_what_they_lost(finished: str) -> None:
    views = view_all(finished, packed_otherwise(finished, "after_segment", sequence_length=48))
    thoughts = [block for document in views for block in document.blocks if isinstance(block, Thought)]
    assert all(0 <= thought.tokens_lost < len(thought.candidate.input_ids) for thought in thoughts)
    assert any(thought.tokens_lost for thought in thoughts)
    assert any(isinstance(block, Mark) and block.kind == "cut" for document in views for block in document.blocks)


def test_tokens_that_share_a_character_are_one_unit_and_nats_stay(finished: str) -> None:
    stages = read_stages(finished)
    doc_id = "doc 3"
    stored = sample.read_documents(finished, stages, [doc_id])[doc_id]
    units = [u for b in Reader(finished, stages).view(stored).blocks if isinstance(b, Source) for u in b.units]
    assert any(unit.tokens > 1 and unit.text.endswith(("é", "日", "本")) for unit in units)
    assert "\ufffd" not in "".join(unit.text for unit in units)
    assert sum(unit.tokens for unit in units) == sum(len(s.input_ids) for s in stored.segments)
    total = sum(float(s.surprisal_nats.astype(np.float64).sum()) for s in stored.segments)
    assert sum(unit.nats for unit in units) == pytest.approx(total)


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(finished: str) -> str:
    return report.render(finished)


def test_the_page_has_every_figure_with_a_table(page: str, finished: str) -> None:
    outline = Outline(page)
    assert not outline.open
    assert len(outline.ids) == len(set(outline.ids))
    figures = {"difficulty", "budget", "lengths", "gain", "worth", "rejections", "packing", "cost"}
    assert figures | {"funnel", "room"} <= set(outline.ids)
    assert outline.tags.count("figure") == len(figures)
    assert outline.tags.count("table") == len(figures) + page.count('class="keys-and-values"')
    assert outline.tags.count("figcaption") == len(figures)
    assert page.count('class="chart"') == len(figures)
    described = re.findall(r'<svg class="chart"[^>]*aria-label="([^"]+)"', page)
    assert len(described) == len(figures) and all(len(text) > 20 for text in described)
    assert "rehearsal: not for training" in page
    selected = manifest.require(finished, "select")
    assert f"{selected.counts['kept']:,} of {selected.counts['candidates']:,} candidates were kept" in page
    assert "Tier deep is unmeasured: none of the 10 traces that passed the gates could be valued" in page
    assert "10 traces passed the gates and have no value: too few other documents have traces of their tier" in page
    dollars = selected.counts["thought_tokens"] * 2.0 / 1e6
    assert f"${dollars:,.4g}" in page


def test_the_configuration_is_the_one_in_effect_and_holds_no_secret(page: str, copied: str) -> None:
    assert '<th scope="row">budget.tiers.deep.max_tokens</th>' not in page, "keys stand within their section"
    for row in ("tiers.deep.max_tokens</th><td>128", "zstd_level</th><td>6", "layout</th><td>after_document"):
        assert f'<th scope="row">{row}</td>' in page
    augmented = manifest.require(copied, "augment")
    models = {"pretend": {**augmented.config["models"]["pretend"], "base_url": "https://me:hunter2@host/v1"}}
    config = {**augmented.config, "models": models}
    manifest.write(copied, msgspec.structs.replace(augmented, config=config))
    told = report.render(copied)
    assert "hunter2" not in told and "https://REDACTED@host/v1" in told


def test_documents_say_what_they_can_be_found_by(finished: str, page: str) -> None:
    found = re.findall(r"<li data-tiers=\"([^\"]*)\" data-outcomes=\"([^\"]*)\" data-sources=\"([^\"]*)\">", page)
    assert len(found) == page.count("<article")
    tiers, outcomes, sources = ([json.loads(unescape(one[i])) for one in found] for i in range(3))
    assert {"brief", "deep", "skip"} == set().union(*tiers) and sources == [[""]] * len(found)
    candidates = sample.look(finished, read_stages(finished)).candidates
    reasons = {reason.replace("_", " ") for candidate in candidates for reason in candidate.reasons}
    assert set().union(*outcomes) == {"kept", *reasons}


def test_gain_stands_against_what_a_kept_thought_took(page: str, finished: str) -> None:
    [figure] = re.findall(r'<figure id="worth"(.*?)</figure>', page, re.DOTALL)
    [row] = [r for r in manifest.require(finished, "select").facts["account"] if "gains" in r]
    tokens, gain = row["thought_tokens"] / row["kept"], row["gains"]["heldout"]
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", figure)
    dollars = f"${tokens * 2.0 / 1e6:,.3g}"
    rate = f"{1000 * gain['mean'] / tokens:+.2f}"
    assert cells == [f"{row['kept']}", f"{tokens:,.0f}", dollars, "no rate", in_words(gain), rate]
    assert "Tier deep isn&#39;t here: no kept thought of it has a measured gain" in figure


def test_the_page_asks_for_nothing(page: str) -> None:
    outline = Outline(page)
    assert not {"src", "srcset", "action", "data"} & {name for name, _ in outline.attributes}
    links = {value for name, value in outline.attributes if name == "href"}
    assert all(link and (link.startswith("#") or link == "data:,") for link in links)
    assert "url(" not in page and "@import" not in page


def test_every_link_leads_somewhere_in_the_page(page: str) -> None:
    outline = Outline(page)
    for name, value in outline.attributes:
        if name == "href" and value and value.startswith("#"):
            assert value[1:] in outline.ids
        if name == "aria-labelledby":
            assert value in outline.ids


def test_the_same_output_gives_the_same_page(page: str, finished: str) -> None:
    assert report.render(finished) == page


def with_hostile_candidates(output: str) -> None:
    """Make the text, model and reasons of every candidate hostile."""
    selected = manifest.require(output, "select")
    vocab_size = manifest.require(output, "score").facts["vocab_size"]
    for family in ("kept", "rejected"):
        for url in manifest.file_urls(output, selected, family):
            changed = [
                msgspec.structs.replace(
                    c, text=HOSTILE, model=HOSTILE, prompt=HOSTILE, reasons=[HOSTILE] * (not c.kept)
                )
                for c in storage.read_records(url, Candidate)
            ]
            storage.write_part(url, changed, KEPT.schema(vocab_size=vocab_size))
    counts = {**selected.counts, f"rejected.{HOSTILE}": 3}
    manifest.write(output, msgspec.structs.replace(selected, counts=counts))


def test_hostile_text_stays_text(copied: str) -> None:
    with_hostile_candidates(copied)
    outline = Outline(report.render(copied))
    assert not outline.open
    assert outline.tags.count("script") == outline.tags.count("style") == 1
    assert "img" not in outline.tags
    assert "onerror" not in {name for name, _ in outline.attributes}
    whole = "".join(outline.texts)
    assert visible(HOSTILE) in whole
    assert "\x1b" not in whole and "\u202e" not in whole


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("\x00\x1b[2J\x7f\r", "␀␛[2J␡␍"),
        ("\u202eabc\u2066", "⟨U+202E⟩abc⟨U+2066⟩"),
        ("\x9b31m", "⟨U+009B⟩31m"),
        ("日本 é", "日本 é"),
        ("\ud800", "\\ud800"),
    ],
)
def test_control_characters_are_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize(
    ("done", "there", "waits"),
    [
        (("score",), {"difficulty"}, {"budget", "lengths", "gain", "worth", "rejections", "packing", "cost"}),
        (("score", "augment"), {"difficulty", "budget", "cost"}, {"lengths", "gain", "worth", "rejections", "packing"}),
        (("score", "augment", "select"), {"budget", "lengths", "gain", "worth", "rejections", "cost"}, {"packing"}),
    ],
)
def test_partial_outputs_say_what_is_missing(
    copied: str, done: tuple[str, ...], there: set[str], waits: set[str]
) -> None:
    for stage in manifest.STAGES:
        if stage not in done:
            Path(manifest.manifest_url(copied, stage)).unlink()
    if "augment" not in done:
        Path(copied, "difficulty.json").unlink()
    html = report.render(copied)
    assert not Outline(html).open
    figures = dict(re.findall(r'<figure id="(\w+)"(.*?)</figure>', html, re.DOTALL))
    assert {key for key, body in figures.items() if "Not there yet" in body} == waits
    assert all('class="chart"' in figures[key] for key in there)
    missing = manifest.STAGES[len(done)]
    assert f"Run <code>thoughtmill {missing} CONFIG</code> first" in html
    assert 'class="tokens"' in html  # the reading room is there as soon as there are scores


def test_a_plan_of_other_scores_is_not_shown(copied: str) -> None:
    scored = manifest.require(copied, "score")
    histogram = DifficultyHistogram()
    histogram.add_many(["a#0", "b#0"], np.array([5.0, 50.0]))
    manifest.write(copied, msgspec.structs.replace(scored, facts={**scored.facts, "histogram": histogram.to_json()}))
    assert Reader(copied, read_stages(copied)).allocation is None


def test_copies_cost_nothing_and_are_told(copied: str) -> None:
    scored, augmented = manifest.require(copied, "score"), manifest.require(copied, "augment")
    bought = augmented.counts["thought_tokens"] - 100  # so many were shared
    counts = {**augmented.counts, "thought_tokens": bought}
    manifest.write(copied, msgspec.structs.replace(augmented, counts=counts))
    counts = {**scored.counts, "documents_duplicate": 1234, "duplicates_dropped": 1234}
    manifest.write(copied, msgspec.structs.replace(scored, counts=counts))
    page = report.render(copied)
    assert f'<th scope="row">pretend, generated</th><td>{bought:,}</td><td>${bought * 2.0 / 1e6:,.4g}</td>' in page
    assert "<li>1,234 exact copies, dropped</li>" in page
    assert "; 1,234 exact copies, 1,234 dropped" in as_text(summary.render(copied))
    counts = {**counts, "duplicates_dropped": 0, "quarantined": 2, "quarantined.no_text": 2}
    manifest.write(copied, msgspec.structs.replace(scored, counts=counts))
    assert "<li>1,234 exact copies, kept</li>" in report.render(copied)
    assert "; 2 quarantined (no_text 2); 1,234 exact copies, all kept" in as_text(summary.render(copied))


def test_the_summary_says_where_to_look_and_how_sure_a_gain_is(copied: str) -> None:
    said = as_text(summary.render(copied))
    assert "copies" not in said and "report.html" not in said, "there are none, and it isn't written"
    rows = [row for row in manifest.require(copied, "select").facts["account"] if "gains" in row]
    assert rows
    for row in rows:
        gain, null = in_words(row["gains"]["heldout_first"]), in_words(row["gains"]["null_first"])
        assert f"{row['tier']}: {gain} nats a segment beyond control traces" in said and f"; null {null}" in said
    report.write(copied)
    assert f"look at            {copied}/report.html (" in as_text(summary.render(copied))


def as_text(what: Any) -> str:
    console = Console(width=300, file=io.StringIO())
    console.print(what)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_forecast_stands_beside_what_came(copied: str, page: str) -> None:
    assert "Forecast" not in page and "forecast" not in page, "there was no pilot"
    augmented = manifest.require(copied, "augment")
    forecast = {"thought_tokens": {"value": 1000.0, "low": 900.0, "high": 1100.0}}
    manifest.write(copied, msgspec.structs.replace(augmented, facts={**augmented.facts, "forecast": forecast}))
    [cost] = re.findall(r'<figure id="cost"(.*?)</figure>', report.render(copied), re.DOTALL)
    assert "Forecast by a pilot: 1,000 thinking tokens (900 to 1,100 with 90% confidence)" in cost
    assert f"generated: {augmented.counts['thought_tokens']:,}" in cost
    assert '<th scope="row">forecast</th><td>1,000</td>' in cost


def test_without_the_tokenizer_there_are_figures_still(copied: str) -> None:
    scored = manifest.require(copied, "score")
    manifest.write(copied, msgspec.structs.replace(scored, config={**scored.config, "tokenizer": "/nowhere/at/all"}))
    shutil.rmtree(Output(copied).tokenizer)
    html = report.render(copied)
    assert html.count('class="chart"') == 8
    assert "The documents can&#39;t be shown here" in html and "/nowhere/at/all" in html
    assert 'class="tokens"' not in html


def test_nothing_scored_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MillError, match="holds no scored run"):
        report.write(str(tmp_path))


# --- bounds -----------------------------------------------------------------------------------------------------------

NUM_PARTS = 40


@pytest.fixture
def many_parts(tmp_path: Path, byte_tokenizer: str) -> str:
    """Scores of 2,000 documents in 40 parts, one of them very long."""
    output = str(tmp_path / "many")
    histogram = DifficultyHistogram()
    parts: dict[int, list[ScoredSegment]] = {}
    for i in range(2_000):
        doc_id = f"{i:05d}"
        segments = 300 if i == 7 else 1
        for index in range(segments):
            segment = ScoredSegment(
                doc_id=doc_id,
                segment_index=index,
                num_segments=segments,
                token_start=64 * index,
                input_ids=np.full(64, 70, np.uint16),
                surprisal_nats=np.full(64, 3.0, np.float16),
                entropy_nats=np.full(64, 1.0, np.float16),
                memory_nats=np.empty(0, np.float16),
                difficulty_nats=64.0 + i % 90,
            )
            histogram.add(segment.segment_id, segment.difficulty_nats)
            parts.setdefault(partition_of(doc_id, NUM_PARTS), []).append(segment)
    entries = []
    for index, members in sorted(parts.items()):
        name = f"segments-{index:05d}-of-{NUM_PARTS:05d}.arrow"
        members.sort(key=lambda segment: (segment.doc_id, segment.segment_index))
        url = storage.join(output, "stages/score", name)
        entries.append(storage.write_part(url, members, SEGMENTS.schema(vocab_size=2_000), name=name))
    scored = Manifest(
        stage="score",
        format=manifest.FORMAT,
        fingerprint="0" * 32,
        config={"tokenizer": byte_tokenizer, "difficulty": {"threshold_nats": 2.0}},
        inputs={},
        files={"segments": entries},
        counts={
            "documents": 2_000,
            "documents_in": 2_000,
            "quarantined": 0,
            "segments": 2_299,
            "source_tokens": 147_136,
        },
        facts={"histogram": histogram.to_json(), "vocab_size": 2_000},
        rehearsal=True,
        elapsed_s=1.0,
    )
    manifest.write(output, scored)
    return output


def test_few_parts_are_read(many_parts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: set[str] = set()
    read = storage.read_batches

    def spy(url: str, *args: Any, **named: Any) -> Any:
        opened.add(url)
        return read(url, *args, **named)

    monkeypatch.setattr(storage, "read_batches", spy)
    html = report.render(many_parts)
    assert 1 <= len(opened) <= sample.MAX_PARTS
    assert html.count("<article") == room.MAX_DOCUMENTS


def test_a_part_is_read_up_to_a_limit(many_parts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "MAX_ROWS", 10)
    seen = sample.look(many_parts, read_stages(many_parts))
    assert len(seen.difficulty_nats) == 10 * sample.MAX_PARTS


def test_a_long_document_is_shown_in_part(many_parts: str) -> None:
    stages = read_stages(many_parts)
    view = Reader(many_parts, stages).view(sample.read_documents(many_parts, stages, ["00007"])["00007"])
    assert view.num_tokens == 300 * 64
    shown = room.reading(view, 2.0)
    tokens = sum(passage.tokens.count("<i ") for passage in shown.passages)
    assert 0 < tokens <= room.MAX_TOKENS
    assert shown.passages[-1].text == f"{view.num_tokens - tokens:,} tokens are not shown here"


def test_the_page_stays_small(finished: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = report.render(finished).count("<article")
    monkeypatch.setattr(room, "MAX_BYTES", 60_000)
    small = report.render(finished)
    assert 1 <= small.count("<article") < whole
    assert len(small) < 60_000 + 100_000  # beside the documents: style, script, figures


def test_every_tier_and_reason_is_among_the_chosen(finished: str) -> None:
    seen = sample.look(finished, read_stages(finished))
    tiers = {c.tier for c in seen.candidates}
    reasons = {c.reasons[0] for c in seen.candidates if c.reasons}
    assert len(tiers) == 2 and reasons
    chosen = set(sample.choose(seen, 4))
    assert len(chosen) == 4
    among = [c for c in seen.candidates if c.doc_id in chosen]
    assert {c.tier for c in among} == tiers
    assert {c.reasons[0] for c in among if c.reasons} == reasons


def test_every_source_is_among_the_chosen() -> None:
    made = [
        msgspec.structs.replace(one, doc_id=f"d{i}") for i, one in enumerate(paired_gains.candidates([np.ones(1)] * 12))
    ]
    for rare in ("d0", "d5", "d11"):
        others = {candidate.doc_id for candidate in made} - {rare}
        seen = sample.Sample(
            candidates=made,
            difficulty_nats={f"{candidate.doc_id}#0": 1.0 for candidate in made},
            sources={"books": others, "code": {rare}},
        )
        assert rare in sample.choose(seen, 2)


# --- charts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-3, 3, [-2, 0, 2]),
        (0, 12_000, [0, 2_500, 5_000, 7_500, 10_000]),
        (5, 5, [5]),
    ],
)
def test_ticks(low: float, high: float, expected: list[float]) -> None:
    assert svg.ticks(low, high) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1234, "1,234"),
        (0.25, "0.25"),
        (12_345, "12.3k"),
        (4_560_000, "4.56M"),
        (2e12, "2T"),
        (1234.5, "1,234"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("label", "width", "shown"),
    [
        ("skip", 60, "skip"),
        ("qwen3-4b-instruct-a", 100, "qwen3-…uct-a"),
        ("qwen3-4b-instruct-b", 100, "qwen3-…uct-b"),
    ],
)
def test_labels_are_cut_in_the_middle(label: str, width: float, shown: str) -> None:
    assert svg.short(label, width) == shown


@pytest.mark.parametrize(("value", "said"), [(0.00123456, "0.001235"), (12.5, "12.5"), (1_740_210.0, "1,740,210")])
def test_amounts_have_no_exponent(value: float, said: str) -> None:
    assert quantity(value) == said


def test_columns_are_as_high_as_their_values() -> None:
    series = [Series("a", "s1", [1, 0, 4]), Series("b", "s2", [1, 0, 0])]
    svg = str(charts.columns("<t>", "d & e", [0, 1, 2, 3], series, x_label="x", y_label="y"))
    assert "&lt;t&gt;" in svg and "d &amp; e" in svg
    heights = [float(h) for h in re.findall(r'<rect class="s\d"[^>]* height="([\d.]+)"', svg)]
    assert len(heights) == 3  # an empty column is not drawn
    assert heights[0] == heights[1]
    assert heights[2] == pytest.approx(4 * heights[0], abs=0.4)


def test_a_token_is_coloured_by_its_nats() -> None:
    html = room.coloured([Unit("a", 0.2, 9.0), Unit("<", 7.5, 0.0, memory=1.5), Unit("é", 99.0, 1.0, tokens=2)])
    found = re.findall(r'<i class="(a\d e\d)" data-s="([\d.]+)" data-e="([\d.]+)"([^>]*)>([^<]+)</i>', html)
    assert found == [
        ("a0 e9", "0.20", "9.00", "", "a"),
        ("a7 e0", "7.50", "0.00", ' data-m="1.50"', "&lt;"),
        ("a9 e1", "99.00", "1.00", ' data-n="2"', "é"),
    ]


def test_the_first_of_equal_bars_is_in_front() -> None:
    both = [Series("kept", "s1", [2450.0, 5.0]), Series("generated", "s0", [2450.0, 9.0])]
    drawn = charts.bars("Cost", "Said.", ["two", "one"], both, x_label="tokens", stacked=False)
    assert re.findall(r'<rect class="(s[01])"', drawn) == ["s0", "s1", "s0", "s1"]
