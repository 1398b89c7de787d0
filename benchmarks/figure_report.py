"""Takes the pictures of docs/report.md: the report in headless Chromium, and `thoughtmill inspect` in a terminal.

    python -m benchmarks.figure_report out/demo docs

Reads a finished run, writes its report and, into the folder, report.png, reading-room.png, report-phone.png and
inspect.png, each with at most 256 colours.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from benchmarks.browser import Browser, Page
from pipelines import report
from pipelines.documents.inspect import Wanted, inspect

WIDTH, MAX_HEIGHT, TERMINAL_COLUMNS = 1200, 1300, 104

OPEN_THE_FULLEST = """(() => {
  const kept = article => article.querySelectorAll('.thought').length && Math.max(0, ...[...article.querySelectorAll(
    'details.candidates')].map(d => d.querySelectorAll('.cards > li').length));
  const best = [...document.querySelectorAll('article')].sort((a, b) => kept(b) - kept(a))[0];
  location.hash = best.id;
  const most = [...best.querySelectorAll('details.candidates')].sort(
    (a, b) => b.querySelectorAll('.cards > li').length - a.querySelectorAll('.cards > li').length)[0];
  if (most) most.open = true;
  return new Promise(done => setTimeout(() => {
    const tokens = (most || best).parentNode.querySelector('.tokens') || best.querySelector('.tokens');
    tokens.focus();
    done(tokens.closest('.passage').getBoundingClientRect().top + scrollY);
  }, 200));
})()"""


def main(output: str, folder: str) -> None:
    """Take the pictures of the run in `output`."""
    url = Path(report.write(output)).absolute().as_uri()
    with Browser() as browser:
        page = browser.open(url, width=WIDTH, height=900)
        last = "#gain" if page.evaluate("Boolean(document.querySelector('#gain svg'))") else "#budget"
        save(page.screenshot(clip=(0, 0, WIDTH, bottom(page, last))), folder, "report.png")
        page = browser.open(url, width=WIDTH, height=1000, dark=True)
        top = page.evaluate(OPEN_THE_FULLEST)
        page.press("n")
        page.evaluate(f"scrollTo(0, {top} - 60)")
        save(page.screenshot(), folder, "reading-room.png")
        page = browser.open(url, width=390, height=844, mobile=True)
        page.evaluate(f"{OPEN_THE_FULLEST}.then(top => scrollTo(0, top - 150))")
        save(page.screenshot(), folder, "report-phone.png")
        save(terminal(browser, output), folder, "inspect.png")


def bottom(page: Page, selector: str) -> float:
    """Where an element ends, in pixels from the top of the page."""
    return page.evaluate(f"document.querySelector('{selector}').getBoundingClientRect().bottom + scrollY + 16")


def terminal(browser: Browser, output: str) -> bytes:
    """What `thoughtmill inspect OUTPUT --tier deep --limit 1` prints."""
    from rich.console import Console

    console = Console(record=True, width=TERMINAL_COLUMNS, file=io.StringIO(), force_terminal=True, highlight=False)
    for document in inspect(output, Wanted(tier="deep", limit=1)):
        console.print(document)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inspect.svg"
        # Without the font that rich would load from elsewhere.
        svg = console.export_svg(title=f"thoughtmill inspect {output} --tier deep --limit 1").split("@font-face")
        path.write_text(svg[0] + "".join(part.split("}", 1)[1] for part in svg[1:]))
        page = browser.open(path.as_uri(), width=WIDTH, height=1000)
        wide, high = page.evaluate("(b => [b.width, b.height])(document.documentElement.viewBox.baseVal)")
        page.evaluate(f"document.documentElement.setAttribute('width', {WIDTH})")
        page.evaluate(f"document.documentElement.setAttribute('height', {high * WIDTH / wide})")
        return page.screenshot(clip=(0, 0, WIDTH, min(MAX_HEIGHT, high * WIDTH / wide)))


def save(png: bytes, folder: str, name: str) -> None:
    """Write a picture with a palette: a third of the size, and no difference to see."""
    from PIL import Image

    picture = (
        Image.open(io.BytesIO(png)).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    )
    picture.save(Path(folder) / name, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:3])
