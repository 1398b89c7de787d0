"""The live page: what it says of a run that hasn't begun, is at work, is done; who may ask; how it ends."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.browser import Browser, Page, find_chromium
from pipelines.live import state
from pipelines.live.server import Server
from sharding import storage
from sharding.errors import RequestError
from sharding.storage import manifest
from sharding.storage.output import Output
from tests.test_report import Outline, milled, with_hostile_candidates
from tests.test_stopping import heed_signals


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: str) -> str:
    output = milled(tmp_path_factory.mktemp("live"), byte_tokenizer)
    with_hostile_candidates(output)
    return output


@pytest.fixture(autouse=True)
def _looks_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "LOOK_S", 0.0)
    monkeypatch.setattr(state.progress, "MAX_SHARE", 1.0)


@contextmanager
def served(output: str) -> Iterator[Server]:
    with Server(output) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


def ask(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    connection.close()
    return found


def snapshot(output: str, **changed: Any) -> None:
    told = {"stage": "score", "run": "r", "at": time.time(), "elapsed_s": 75.0, "counts": {"documents": 3, "tokens": 9}}
    url = Output(output).progress
    Path(url).parent.mkdir(parents=True, exist_ok=True)
    storage.write_json(url, told | changed)


def test_a_warning_stands_on_the_page_once() -> None:
    found = {"generation": None, "warnings": ["of the budget", "of the run"], "stages": {"augment": "done"}}
    assert list(state.rows(found, None, elsewhere=["of the budget"])) == [("warning", "of the run")]


def test_a_finished_run_is_told_with_the_reports_figures(finished: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(finished).rglob("*") if path.is_file()}
    with served(finished) as server:
        status, headers, body = ask(server, "/state.json")
        told = json.loads(body)
        assert status == 200 and told["complete"] and "Complete." in told["now"]
        parts = json.loads(ask(server, "/figures.json")[2])
        page = ask(server, "/")[2].decode()
    for name in ("difficulty", "budget", "gain", "worth", "cost"):
        assert f'<figure id="{name}"' in parts["figures"]
    for html in (*parts.values(), told["now"], page):
        outline = Outline(html)
        assert not outline.open and "img" not in outline.tags and "onerror" not in {n for n, _ in outline.attributes}
    assert "connect-src &#39;self&#39;" not in page and "connect-src 'self'" in page
    assert headers["cache-control"] == "no-store" and "access-control-allow-origin" not in headers
    assert {path: path.stat().st_mtime_ns for path in Path(finished).rglob("*") if path.is_file()} == before


def test_from_nothing_to_a_run_at_work_to_its_end(finished: str, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    watched = state.Watched(output)
    assert "No run has begun here yet" in watched.state()["now"] and not Path(output).exists()
    Path(output, "stages").mkdir(parents=True)
    Path(Output(output).progress).write_text("{", encoding="utf-8")
    assert "Can't be read now" in watched.state()["now"], "it isn't nothing"
    snapshot(output)
    assert "score, for 75 s" in watched.state()["now"] and "3 documents" in watched.state()["now"]
    nothing = watched.state()["figures"]
    shutil.copytree(finished, output, dirs_exist_ok=True)
    Path(Output(output).success).unlink()
    for stage in ("augment", "select"):
        Path(manifest.manifest_url(output, stage)).rename(f"{output}/{stage}.json")
    difficulty = Path(Output(output).difficulty).read_bytes()
    Path(Output(output).difficulty).unlink()
    assert "the augment stage has not finished" in watched.figures()["figures"]
    Path(Output(output).difficulty).write_bytes(difficulty)  # the stage has planned, and begins to generate
    assert "thinking tokens are planned for" in watched.figures()["figures"]
    for stage in ("augment", "select"):
        Path(f"{output}/{stage}.json").rename(manifest.manifest_url(output, stage))
    Path(manifest.manifest_url(output, "pack")).unlink()
    snapshot(output, stage="pack", counts={"sequences": 7})
    assert "pack, for 75 s" in watched.state()["now"] and watched.state()["figures"] != nothing
    assert "the pack stage has not finished" in watched.figures()["figures"]
    Path(Output(output).progress).unlink()
    assert "Nobody is at work here" in watched.state()["now"]
    Path(manifest.manifest_url(output, "select")).write_text("{", encoding="utf-8")
    assert "Can't be read now" in watched.state()["now"] and not watched.state()["complete"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:80", 200),
        ("localhost:9", 200),
        ("LOCALHOST", 200),
        ("[::1]:80", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example:80", 421),
        ("localhost.evil.example", 421),
        ("", 421),
    ],
)
def test_a_name_of_somebody_elses_is_refused(tmp_path: Path, host: str, status: int) -> None:
    with served(str(tmp_path)) as server:
        for path in ("/", "/state.json"):
            assert ask(server, path, Host=host)[0] == status


def test_it_is_to_be_read_alone(tmp_path: Path) -> None:
    with served(str(tmp_path)) as server:
        assert [ask(server, "/", method)[0] for method in ("POST", "PUT", "DELETE", "OPTIONS")] == [405] * 4
        for path in ("/report.html", "/../../etc/passwd", "/stages/score/MANIFEST.json", "/?x=1"):
            assert ask(server, path)[0] == 404
        status, headers, body = ask(server, "/state.json", "HEAD")
        assert status == 200 and body == b"" and int(headers["content-length"]) > 0
        with pytest.raises(RequestError, match=r"can't listen on 127.0.0.1 port \d+: .*--port"):
            Server(str(tmp_path), port=server.server_address[1])


@pytest.mark.slow
def test_ctrl_c_ends_it_in_one_line(finished: str) -> None:
    command = [sys.executable, "-m", "pipelines.cli", "watch", finished]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_signals
    )
    assert running.stdout is not None
    line = running.stdout.readline()
    assert line.startswith("http://127.0.0.1:") and finished in line
    host, _, port = line.split()[0].removeprefix("http://").rstrip("/").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)  # stays open: nobody is waited for
    connection.request("GET", "/state.json")
    assert connection.getresponse().read()
    os.kill(running.pid, signal.SIGINT)
    _, said = running.communicate(timeout=30)
    assert running.returncode == 130 and said.strip() == "stopped by Ctrl-C"


def until(page: Page, condition: str) -> bool:
    """Wait until it holds in the page, 20 s at most."""
    return bool(
        page.evaluate(
            "new Promise((done, failed) => { setTimeout(() => failed(new Error(document.body.innerText)), 20000);"
            f"const timer = setInterval(() => {{ if ({condition}) {{ clearInterval(timer); done(true); }} }}, 50); }})"
        )
    )


@pytest.mark.slow
@pytest.mark.skipif(find_chromium() is None, reason="no Chromium here: `make browser`, or set CHROMIUM to its path")
def test_the_page_follows_a_run_in_a_browser(finished: str, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    with served(output) as server, Browser() as browser:
        for width, dark in ((1280, False), (360, True)):
            shutil.rmtree(output, ignore_errors=True)
            page = browser.open(server.url, width=width, height=800, dark=dark, mobile=width < 500)
            assert until(page, "document.body.innerText.includes('No run has begun')")
            snapshot(output)
            assert until(page, "document.body.innerText.includes('score, for 75 s')")
            shutil.copytree(finished, output, dirs_exist_ok=True)
            Path(Output(output).progress).unlink()
            assert until(page, "document.body.innerText.includes('Complete.')")
            assert until(page, "document.querySelectorAll('#part-figures svg.chart').length >= 6")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate("typeof hacked") == "undefined" and page.evaluate("document.images.length") == 0
            assert page.errors == []
            assert {url.removeprefix(server.url) for url in page.requested} == {"", "state.json", "figures.json"}
