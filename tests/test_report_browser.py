"""The report in a real browser: headless Chromium, light and dark, wide and narrow, with the keyboard alone."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.browser import Browser, Page, find_chromium
from pipelines import compare, report
from pipelines.report.html import SHORT_ID
from tests.test_report import HOSTILE, milled, with_hostile_candidates

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium here: `make browser`, or set CHROMIUM to its path"),
]

FIGURES = ["difficulty", "budget", "lengths", "gain", "worth", "rejections", "packing", "cost"]
ACTIVE = "(e => e.id || e.className || e.tagName)(document.activeElement)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as running:
        yield running


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: str) -> str:
    """The report of a rehearsal whose traces, ids and texts try to break out of it."""
    select = {"value": "continuation_gain", "gain": {"hold_back_tokens": 16}}
    output = milled(tmp_path_factory.mktemp("browser"), byte_tokenizer, select=select)
    with_hostile_candidates(output)
    return Path(report.write(output)).as_uri()


@pytest.fixture(scope="module")
def comparison(url: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """That run beside a copy of itself."""
    output = Path(url.removeprefix("file://")).parent
    copy = shutil.copytree(output, tmp_path_factory.mktemp("comparison") / "copy")
    page = copy.parent / "compare.html"
    page.write_text(compare.render([output, copy]), encoding="utf-8")
    return page.as_uri()


def colours(png: bytes) -> np.ndarray:
    """(height, width, 3) uint8."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def tab_until(page: Page, condition: str, at_most: int = 200) -> int:
    """Press Tab until the condition holds; how often it took."""
    for pressed in range(1, at_most + 1):
        page.press("Tab")
        if page.evaluate(condition):
            return pressed
    raise AssertionError(f"{at_most} times Tab, and never {condition}; now at {page.evaluate(ACTIVE)}")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (360, 740)], ids=["wide", "phone"])
def test_everything_is_drawn(browser: Browser, url: str, width: int, height: int, dark: bool) -> None:
    page = browser.open(url, width=width, height=height, dark=dark, mobile=width < 500)
    boxes = page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('figure')].map(f => {"
        "const chart = f.querySelector('svg.chart'), box = chart.getBoundingClientRect();"
        "return [f.id, [box.width, box.height, chart.querySelectorAll('rect, circle').length]]; }))"
    )
    assert list(boxes) == FIGURES
    for name, (wide, high, shapes) in boxes.items():
        assert wide > 200 and high > 40 and shapes > 0, f"{name}: {wide} by {high} with {shapes} shapes"
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page is wider than the window"
    tokens = page.evaluate("[...document.querySelectorAll('article.open .tokens i')].map(i => i.offsetWidth)")
    assert len(tokens) > 20 and sum(map(bool, tokens)) > 20
    assert page.evaluate("document.querySelectorAll('article.open').length") == 1
    picture = colours(page.screenshot())
    assert picture.shape == (height, width, 3)
    assert picture.reshape(-1, 3).std(axis=0).min() > 5, "a blank picture"
    middle = np.median(picture)
    assert middle < 60 if dark else middle > 200
    assert page.errors == []
    assert page.requested == [url]


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (360, True)], ids=["wide", "phone"])
def test_runs_stand_side_by_side(browser: Browser, comparison: str, width: int, dark: bool) -> None:
    page = browser.open(comparison, width=width, height=900, dark=dark, mobile=width < 500)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    left, right = page.evaluate(
        "[...document.querySelectorAll('article.open .copy')].map(c => { const b = c.getBoundingClientRect(); "
        "return [b.left, b.top, b.width]; })"
    )
    assert (left[1] == right[1] and left[0] < right[0]) if width > 500 else (left[0] == right[0] and left[1] < right[1])
    assert min(left[2], right[2]) > 250
    assert page.evaluate("[...document.querySelectorAll('.figures figure')].every(f => f.offsetHeight > 40)")
    page.evaluate("document.querySelector('article.open .copy:last-child .tokens').focus()")
    page.press("n")
    assert "surprisal" in page.evaluate("document.querySelector('.readout').innerText")
    assert page.errors == [] and page.requested == [comparison]


@pytest.mark.parametrize("width", [1280, 390], ids=["wide", "phone"])
def test_ids_in_the_list_are_cut_once(browser: Browser, url: str, width: int) -> None:
    """In their middle, and not again at the end of the line."""
    page = browser.open(url, width=width, height=900, mobile=width < 500)
    found = page.evaluate(
        f"[...document.querySelectorAll('.documents .id')].map(e => {{ e.textContent = {'d' * SHORT_ID!r};"
        "return [e.scrollWidth, e.clientWidth]; })"
    )
    assert found and all(text <= room for text, room in found), found


def test_names_of_runs_stay_words_on_a_phone(browser: Browser, comparison: str) -> None:
    page = browser.open(comparison, width=390, height=900, mobile=True)
    table = (
        "<table><thead><tr><th>key<th>rehearsal<th>two</thead><tr><td>budget.thinking_tokens_per_source_token<td>1<td>2"
    )
    high = page.evaluate(
        f"(f => {{ f.insertAdjacentHTML('beforeend', {table!r});"
        "return [...f.querySelectorAll('table:last-of-type thead th')].map(e => e.offsetHeight); })"
        "(document.querySelector('#differences'))"
    )
    assert len(high) == 3 and max(high) < 36, "on one line each"


def contrast(page: Page, foreground: str, background: str) -> float:
    """WCAG's contrast of two colours as the style sheet has them now."""
    probe = (
        "(name => { const c = document.createElement('canvas').getContext('2d'); c.fillStyle = "
        "getComputedStyle(document.documentElement).getPropertyValue(name).trim(); c.fillRect(0, 0, 1, 1);"
        "return [...c.getImageData(0, 0, 1, 1).data].slice(0, 3); })"
    )
    luminances = []
    for name in (foreground, background):
        rgb = np.array(page.evaluate(f"{probe}('{name}')")) / 255
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        luminances.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    high, low = max(luminances), min(luminances)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_can_be_read_on_every_ground(browser: Browser, url: str, dark: bool) -> None:
    page = browser.open(url, width=1280, height=900, dark=dark)
    pairs = [("--ink", ground) for ground in ("--paper", "--card", "--thought", "--notice")]
    pairs += [("--ink", f"--{scale}{level}") for scale in "ae" for level in range(1, 10)]
    pairs += [(ink, ground) for ink in ("--soft", "--link", "--good", "--bad") for ground in ("--paper", "--card")]
    too_low = {pair: contrast(page, *pair) for pair in pairs if contrast(page, *pair) < 4.5}
    assert not too_low


def test_the_keyboard_reaches_and_reads_the_reading_room(browser: Browser, url: str) -> None:
    page = browser.open(url, width=1280, height=900)
    page.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.press("Enter")
    assert page.evaluate("location.hash + ' ' + document.activeElement.id") == "#room room"
    tab_until(page, "document.activeElement.closest('.documents') !== null", 5)
    tab_until(page, "document.activeElement.getAttribute('href') === '#document-2'", 5)
    page.press("Enter")
    page.evaluate("new Promise(done => setTimeout(done, 100))")
    assert page.evaluate("document.querySelector('article.open').id") == "document-2"
    assert page.evaluate(ACTIVE) == "document-2-title"
    tab_until(page, "document.activeElement.className === 'tokens'", 3)
    said = [page.evaluate("document.querySelector('.readout').innerText")]
    for key in ("ArrowRight", "n", "End"):
        page.press(key)
        said.append(page.evaluate("document.querySelector('.readout').innerText"))
    assert len(set(said)) == 4 and all("surprisal" in text and "entropy" in text for text in said)
    last = page.evaluate("document.activeElement.lastElementChild.classList.contains('here')")
    assert last
    page.press("Escape")
    assert page.evaluate("document.querySelector('.readout').hidden")
    assert page.errors == []


def test_next_hard_token(browser: Browser, url: str) -> None:
    page = browser.open(url, width=1280, height=900)
    page.evaluate("document.querySelector('article.open .tokens').focus()")
    seen = []
    for _ in range(5):
        page.press("n")
        seen.append(page.evaluate("Number(document.querySelector('.here').dataset.s)"))
    assert all(nats > 2.0 for nats in seen)
    page.press("p")
    assert page.evaluate("Number(document.querySelector('.here').dataset.s)") == seen[-2]


def test_the_theme_can_be_switched_and_is_remembered_within_the_page(browser: Browser, url: str) -> None:
    page = browser.open(url, width=1280, height=900)
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    tab_until(page, "document.activeElement.id === 'theme'", 5)
    page.press("Enter")
    dark = page.evaluate(ground)
    assert dark != light
    assert page.evaluate("document.getElementById('theme').textContent") == "Light"
    page.press("Enter")
    assert page.evaluate(ground) == light


def test_colour_by_entropy(browser: Browser, url: str) -> None:
    page = browser.open(url, width=1280, height=900)
    grounds = (
        "[...document.querySelectorAll('article.open .tokens i')].map(i => getComputedStyle(i).backgroundColor).join()"
    )
    by_surprisal = page.evaluate(grounds)
    page.evaluate("document.querySelector('input[value=entropy]').click()")
    assert page.evaluate(grounds) != by_surprisal


def choose(page: Page, what: str, value: str) -> None:
    page.evaluate(
        f"(s => {{ s.value = {value!r}; s.dispatchEvent(new Event('input', {{ bubbles: true }})); }})"
        f"(document.querySelector({what!r}))"
    )


def test_documents_are_found_by_tier_outcome_and_text(browser: Browser, url: str) -> None:
    page = browser.open(url, width=1280, height=900)
    listed = "[...document.querySelectorAll('.documents li')].filter(li => li.offsetHeight).length"
    said = "document.querySelector('.found').textContent"
    all_listed = page.evaluate(listed)
    assert all_listed > 3 and page.evaluate(said) == ""
    choose(page, "select[data-filter=tiers]", "deep")
    deep = page.evaluate(listed)
    assert 0 < deep < all_listed and page.evaluate(said) == f"{deep} of the {all_listed} here"
    assert page.evaluate("document.querySelector('article.open [data-tier=deep]') !== null")
    choose(page, "select[data-filter=tiers]", "")
    choose(page, "select[data-filter=outcomes]", "kept")
    assert page.evaluate(
        "[...document.querySelectorAll('article.open .match')].every("
        "m => m.closest('details').open && m.classList.contains('kept'))"
    )
    choose(page, "select[data-filter=outcomes]", "")
    choose(page, "#filter-text", "NUMBER 4 SAYS")
    assert (
        page.evaluate(listed) == 1 and page.evaluate("document.querySelector('article.open h3').innerText") == "doc 4"
    )
    assert page.evaluate("document.querySelectorAll('article.open .tokens.match').length") > 0
    choose(page, "#filter-text", "nowhere to be found")
    assert page.evaluate(listed) == 0 and page.evaluate(said) == f"none of the {all_listed} here"
    assert page.evaluate("document.querySelectorAll('article.open').length") == 0
    choose(page, "#filter-text", "")
    assert page.evaluate(listed) == all_listed and page.evaluate("document.querySelectorAll('.match').length") == 0
    assert page.errors == []


def test_no_number_of_a_table_is_cut_on_a_phone(browser: Browser, url: str) -> None:
    page = browser.open(url, width=360, height=740, mobile=True)
    page.evaluate("document.querySelectorAll('figure details').forEach(d => { d.open = true; })")
    assert (
        page.evaluate(
            "[...document.querySelectorAll('figure .scroll')].filter(s => s.scrollWidth > s.clientWidth + 1"
            " || (s.closest('.open') && s.scrollHeight > s.clientHeight + 1))"
            ".map(s => s.closest('figure').id)"
        )
        == []
    )


def test_hostile_text_does_nothing(browser: Browser, url: str) -> None:
    page = browser.open(url, width=1280, height=900)
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert page.evaluate("document.title") != "gone"
    assert page.evaluate("typeof hacked") == "undefined"
    assert page.evaluate("document.images.length") == 0
    assert page.evaluate("document.scripts.length") == 1
    start = HOSTILE.split("\u202e")[0]
    assert start in page.evaluate("document.body.textContent")
    assert page.errors == []


def test_a_script_put_into_the_page_would_not_run(browser: Browser, url: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    html = Path(url.removeprefix("file://")).read_text()
    broken.write_text(html.replace("<main", '<script>document.title = "gone"</script><main', 1))
    page = browser.open(broken.as_uri(), width=1280, height=900)
    assert page.evaluate("document.title") != "gone"
    assert page.errors, "the policy should have refused it"


def test_without_script_everything_is_there(browser: Browser, url: str, tmp_path: Path) -> None:
    bare = tmp_path / "bare.html"
    html = Path(url.removeprefix("file://")).read_text()
    bare.write_text(html.replace("script-src 'sha256-", "script-src 'sha256-AAAA", 1))
    page = browser.open(bare.as_uri(), width=1280, height=900)
    heights = page.evaluate("[...document.querySelectorAll('article')].map(a => a.offsetHeight)")
    assert len(heights) > 1 and all(heights)
