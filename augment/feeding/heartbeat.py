"""Heartbeats: small files by which `thoughtmill status` sees from afar what worker processes are doing.

Each process that generates writes one into the run's output every ten seconds and takes it away when it has nothing to
do for a while. They are news, not results: a store that refuses them never fails a run, and one that is left behind is
told by its age.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
from fsspec.implementations.local import LocalFileSystem

from augment.feeding import registry
from sharding import storage, waits
from sharding.errors import MillError
from sharding.storage import clock
from sharding.storage.json_files import Number, read_json

logger = logging.getLogger(__name__)

BEAT_S = 10.0
STALE_S = 60.0
"""A heartbeat older than this is of a process that is gone, or whose store no longer listens."""

_RATE_WINDOW_BEATS = 6

MAX_BEAT_BYTES = 1 << 16
STOP_NAME = "stop.json"


class AtWork(msgspec.Struct):
    """What a heartbeat says of one model."""

    in_flight: int
    waiting: int
    capacity: int
    failed: int


class Beat(msgspec.Struct):
    """A heartbeat, as anyone may have written it: what `thoughtmill status` takes from it."""

    at: Number
    host: str = ""
    models: dict[str, AtWork] = {}
    waits: list[waits.Wait] = []
    tokens_per_second: Number | None = None


class Stop(msgspec.Struct):
    """An order to stop a run."""

    run_id: str
    reason: str


def stop_url(folder: str) -> str:
    """Where a run's workers are told to stop, in the folder of their heartbeats."""
    return storage.join(folder, STOP_NAME)


class Heartbeat:
    """Tells what this process's feeders are doing, between `begin` and `end` and a little longer.

    Args:
        folder: URL of the folder for the heartbeats of all processes.
        beat_s: seconds from one to the next.
    """

    def __init__(self, folder: str, *, beat_s: float = BEAT_S) -> None:
        self._host = socket.gethostname()
        self._folder = folder
        self._url = storage.join(folder, f"{self._host}-{os.getpid()}-{secrets.token_hex(4)}.json")
        self._beat_s = beat_s
        self._changed = threading.Condition()
        self._active = 0
        self._closed = False
        self._thread: threading.Thread | None = None
        self._tokens: deque[tuple[float, int]] = deque(maxlen=_RATE_WINDOW_BEATS + 1)
        self.stop: tuple[str, str] | None = None
        """The run that is to stop and why, once another process has said so: see `feeding.stopping`."""

    def begin(self) -> None:
        """A bundle has work."""
        with self._changed:
            self._active += 1
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="thoughtmill-heartbeat", daemon=True)
                self._thread.start()

    def end(self) -> None:
        """A bundle has ended."""
        with self._changed:
            self._active -= 1

    def close(self) -> None:
        """Take the heartbeat away."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(self._beat_s)  # a store that hangs holds up nobody

    def _run(self) -> None:
        idle = False
        while True:
            self._try(self._write)  # a beat that fails must not be the last one
            self._try(self._look)
            with self._changed:
                self._changed.wait_for(lambda: self._closed, self._beat_s)
                # Bundles follow each other closely: one without any in between is kept, two are not.
                if self._closed or (idle and not self._active):
                    self._thread = None
                    break
                idle = not self._active
        self._try(lambda: storage.remove(self._url, self._folder))

    def _write(self) -> None:
        found = registry.stats()
        models = {
            name: {field: getattr(stats, field) for field in ("in_flight", "waiting", "capacity", "failed")}
            for name, stats in found.items()
        }
        now, tokens = time.monotonic(), sum(stats.generated_tokens for stats in found.values())
        self._tokens.append((now, tokens))
        since, before = self._tokens[0]
        beat: dict[str, Any] = {
            "at": clock.now_s(self._folder),
            "host": self._host,
            "pid": os.getpid(),
            "models": models,
            "waits": waits.current(),
            "tokens_per_second": max(0, tokens - before) / (now - since) if now > since else None,
        }
        storage.write_json(self._url, beat)

    def _look(self) -> None:
        url = stop_url(self._folder)
        if storage.exists(url):
            found = read_json(url, Stop, "an order to stop", MAX_BEAT_BYTES)
            self.stop = found.run_id, found.reason

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 - whatever a store raises, a heartbeat is not worth a run
            logger.debug("heartbeat %s: %s", self._url, error)


def alive_now(folder: str) -> tuple[list[dict[str, Any]], float]:
    """The heartbeats of processes that are alive, and the Unix time that they are held against.

    That is this machine's. Where by that none is alive of those that are there, its clock may be off: then it is that
    of the store, which dates heartbeats, and is asked by an empty file for a moment, if it can be written.
    """
    now = time.time()
    beats = read_beats(folder, now)
    if not beats and _any_there(folder):
        now = clock.now_s(folder)
        beats = read_beats(folder, now)
    return beats, now


def _any_there(folder: str) -> bool:
    try:
        return any(name.endswith(".json") and name != STOP_NAME for name in storage.list_names(folder))
    except MillError:
        return False


def read_beats(folder: str, now: float) -> list[dict[str, Any]]:
    """The heartbeats of processes that are alive at the Unix time `now`, those of them that can be read."""
    beats = []
    try:
        for name in storage.list_names(folder):
            if not name.endswith(".json") or name == STOP_NAME:
                continue
            if (beat := _read(storage.join(folder, name), now)) is not None:
                beats.append(beat)
    except MillError as error:
        logger.debug("heartbeats in %s: %s", folder, error)
    return beats


def _read(url: str, now: float) -> dict[str, Any] | None:
    try:
        beat = read_json(url, Beat, "a heartbeat", MAX_BEAT_BYTES)
    except MillError as error:
        if not isinstance(error.__cause__, FileNotFoundError):  # it has just ended
            logger.warning("heartbeat left out: %s", error)
        return None
    return msgspec.to_builtins(beat) if abs(now - beat.at) <= STALE_S else None


def clear_beats(folder: str, output: str) -> None:
    """Take away what processes that were killed have left; called when a run has ended."""
    try:
        for name in [name for name in storage.list_names(folder) if name.endswith(".json")]:
            storage.remove(storage.join(folder, name), output)
        fs, path = storage.filesystem(folder)
        if isinstance(fs, LocalFileSystem) and fs.exists(path):
            fs.rmdir(path)  # an object store has no folders
    except (OSError, MillError) as error:
        logger.debug("heartbeats in %s: %s", folder, error)
