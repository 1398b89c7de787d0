"""Where models are found, and that their fingerprints follow what would be loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sharding.errors import MillError
from sharding.models import store
from sharding.models.store import model_fingerprint, model_home, resolve_model


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the mill's own, and a process that has read no model yet."""
    monkeypatch.setenv("THOUGHTMILL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(store, "_digests", {})
    return tmp_path / "home"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder like a model's, its files written a while ago."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model-1.safetensors", "model-2.safetensors"):
        (folder / name).write_bytes(name.encode() * 1000)
    return folder


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose content is read."""
    read: list[str] = []
    real = Path.open

    def counted(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self.parent.name == "model" and args == ("rb",):
            read.append(self.name)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", counted)
    return read


def test_models_are_found_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THOUGHTMILL_HOME", str(tmp_path))
    assert model_home() == tmp_path / "models"
    assert resolve_model("small") == "small"
    (tmp_path / "models" / "small").mkdir(parents=True)
    assert resolve_model("small") == str(tmp_path / "models" / "small")
    assert resolve_model(str(tmp_path)) == str(tmp_path)
    for name in ("", " ", "./missing", str(tmp_path / "missing")):
        with pytest.raises(MillError):
            resolve_model(name)
    monkeypatch.delenv("THOUGHTMILL_HOME")
    assert model_home().parts[-3:] == (".cache", "thoughtmill", "models")


def test_the_fingerprint_follows_all_that_is_loaded(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    seen = {model_fingerprint(str(folder))}
    changes = [("config.json", "{}"), ("tokenizer.json", "{}"), ("config.json", "{ }"), ("a.safetensors", "12")]
    changes += [("b.safetensors", "12"), ("a.safetensors", "123"), ("a.safetensors", "124")]
    changes += [("chat_template.jinja", "x"), ("tokenizer.model", "x"), ("modeling.py", "x")]
    for count, (name, content) in enumerate(changes, start=2):
        (folder / name).write_text(content)
        seen.add(model_fingerprint(str(folder)))
        assert len(seen) == count
    (folder / "README.md").write_text("notes")
    assert model_fingerprint(str(folder)) in seen


def test_a_fine_tune_of_equal_shape_in_place_is_noticed(
    home: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = model / "model-2.safetensors"
    before, content, written = model_fingerprint(str(model)), weights.read_bytes(), weights.stat()
    changed = bytes([content[0] ^ 1]) + content[1:]
    weights.write_bytes(changed)  # at once: the file system may give it the same time
    os.utime(weights, ns=(written.st_atime_ns, written.st_mtime_ns))
    assert weights.stat().st_size == written.st_size and weights.stat().st_mtime_ns == written.st_mtime_ns
    after = model_fingerprint(str(model))
    assert after != before
    weights.write_bytes(content)
    assert model_fingerprint(str(model)) == before


def test_what_has_not_changed_is_read_once_by_all_processes(
    home: Path, model: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_FRESH_S", -1.0)
    first = model_fingerprint(str(model))
    assert sorted(reads) == sorted(path.name for path in model.iterdir())
    assert model_fingerprint(str(model)) == first and len(reads) == 4
    monkeypatch.setattr(store, "_digests", {})  # as another process would begin
    assert model_fingerprint(str(model)) == first and len(reads) == 4
    link = model.parent / "link"
    link.symlink_to(model)
    assert model_fingerprint(str(link)) == first and len(reads) == 4
    for kept, damaged in zip((home / "fingerprints").iterdir(), (b"half", b"\0" * 32, b"\xff" * 32, b""), strict=True):
        kept.write_bytes(damaged)
    monkeypatch.setattr(store, "_digests", {})
    assert model_fingerprint(str(model)) == first and len(reads) == 8
    (model / "model-1.safetensors").write_bytes(b"other")
    monkeypatch.setattr(store, "_digests", {})
    assert model_fingerprint(str(model)) != first and reads[8:] == ["model-1.safetensors"]


def test_a_file_that_has_just_changed_is_not_remembered(home: Path, model: Path, reads: list[str]) -> None:
    model_fingerprint(str(model))
    model_fingerprint(str(model))
    assert len(reads) == 8
    time.sleep(store._FRESH_S + 0.1)
    model_fingerprint(str(model))
    model_fingerprint(str(model))
    assert len(reads) == 12


@pytest.mark.parametrize("place", ["a file", "nowhere"])
def test_without_a_home_that_can_be_written(
    home: Path, model: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    expected = model_fingerprint(str(model))
    reads.clear()
    monkeypatch.setattr(store, "_FRESH_S", -1.0)
    if place == "a file":
        home.unlink() if home.is_file() else None
        (model.parent / "file").write_text("")
        monkeypatch.setenv("THOUGHTMILL_HOME", str(model.parent / "file"))
    else:
        monkeypatch.delenv("THOUGHTMILL_HOME")
        monkeypatch.setattr(Path, "home", _no_home)
        assert resolve_model("small") == "small"
    assert [model_fingerprint(str(model)) for _ in range(2)] == [expected] * 2
    assert len(reads) == 4, "once for the process"


def _no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_a_model_that_cannot_be_read_is_named(home: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "open", _refuse)
    with pytest.raises(MillError, match=f"model {model}: cannot be read"):
        model_fingerprint(str(model))


def _refuse(*_: Any, **__: Any) -> Any:
    raise PermissionError("no")


# --- the hub ----------------------------------------------------------------------------------------------------------

ASK = """
import sys
from sharding.errors import MillError
from sharding.models.store import model_fingerprint
try:
    print(model_fingerprint("team/model", sys.argv[1] or None))
except MillError as error:
    print(error)
"""


class Hub:
    """A hub on loopback that knows where the branches of team/model are; answers 404 for others."""

    def __init__(self) -> None:
        self.commits = {"main": "a" * 40, "v1": "b" * 40}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name, _, revision = self.path.removeprefix("/api/models/").split("?")[0].partition("/revision/")
                commit = hub.commits.get(revision or "main") if name == "team/model" else None
                body = json.dumps({"id": name, "sha": commit} if commit else {"error": "Revision Not Found"}).encode()
                self.send_response(200 if commit else 404)
                if commit is None:
                    self.send_header("X-Error-Code", "RevisionNotFound")
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def ask(self, folder: Path, revision: str = "", **variables: str) -> str:
        """The fingerprint as a process with a cache in `folder` finds it."""
        address = f"http://127.0.0.1:{self.server.server_port}"
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(folder), "HF_HUB_OFFLINE": "0", **variables}
        command = [sys.executable, "-c", ASK, revision]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def test_a_hub_id_has_the_commit_that_its_branch_is_at(tmp_path: Path, hub: Hub) -> None:
    assert hub.ask(tmp_path) == "a" * 40
    assert hub.ask(tmp_path, "v1") == "b" * 40
    hub.commits["main"] = "c" * 40
    assert hub.ask(tmp_path) == "c" * 40, "the branch has moved"
    assert model_fingerprint("team/model", "d" * 40) == "d" * 40, "a commit needs no hub"
    gone = hub.ask(tmp_path, "nowhere")
    assert "team/model" in gone and "'nowhere'" in gone and "name a local folder" in gone


def test_without_the_hub_the_cache_tells_the_commit(tmp_path: Path, hub: Hub) -> None:
    cached = tmp_path / "hub" / "models--team--model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("e" * 40)
    (cached / "snapshots" / ("e" * 40)).mkdir(parents=True)
    (cached / "snapshots" / ("e" * 40) / "tokenizer.json").write_text("{}")
    assert hub.ask(tmp_path, HF_HUB_OFFLINE="1") == "e" * 40
    assert hub.ask(tmp_path, HF_ENDPOINT="http://127.0.0.1:9") == "e" * 40
    refused = hub.ask(tmp_path, "v1", HF_HUB_OFFLINE="1")
    assert "team/model" in refused and "'v1'" in refused and "while online" in refused
    assert hub.ask(tmp_path) == "a" * 40, "the hub knows better than the cache"
