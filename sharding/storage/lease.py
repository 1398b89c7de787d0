"""One run at a time writes to an output: a small file in it says who, and is renewed while that run is alive.

Used by `pipelines.stage` around every stage that has work to do. Two runs that write the same stage would each withdraw
what the other has finished. The file holds its owner and a count that goes up every `BEAT_S`. Whoever finds it

- and can see that its owner's process is gone (same machine) takes it over at once,
- else watches it: a count that moves is a run at work, and the request is refused; one that stands still for `LEASE_S`
  is a run that is gone, and the lease is taken over.

Time is measured by the watcher's own monotonic clock alone, so clocks that differ or jump don't matter, and there is
nothing to force: a lease that nobody renews ends by itself.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.storage.json_files import SMALL_BYTES
from sharding.storage.output import Output
from sharding.storage.retries import patiently

logger = logging.getLogger(__name__)

BEAT_S = 5.0
LEASE_S = 60.0
_LOOK_S = 0.5
_SETTLE_S = 1.0
"""After a takeover, so long for another one at the same moment to show."""


_held: set[Lease] = set()


def give_back_all() -> None:
    """Give back the leases that this process holds; for one that is about to end, whatever its threads are doing."""
    for lease in tuple(_held):
        lease.give_back()


class Lease:
    """The right to write to an output, held within a `with` block.

    Args:
        output: the run's output folder.
        purpose: what for, in a word: shown to whoever is refused.

    Raises:
        RequestError: (on entering) another run is at work on this output; says which.
        MillError: the store refused.
    """

    def __init__(
        self,
        output: str,
        purpose: str,
        *,
        beat_s: float = BEAT_S,
        lease_s: float = LEASE_S,
    ) -> None:
        self.url = Output(output).lease
        self._output, self._purpose = output, purpose
        self._beat_s, self._lease_s = beat_s, lease_s
        self._token = secrets.token_hex(8)
        self._beats = 0
        self._ended = threading.Event()
        self._lost = threading.Event()
        self._keeping = threading.Lock()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Lease:
        while not self._create():
            self._wait_for_takeover()
        self._thread = threading.Thread(target=self._renew, name="thoughtmill-lease", daemon=True)
        self._thread.start()
        _held.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self.give_back()

    def give_back(self) -> None:
        """Remove the lease if it is still ours; it ends by itself where that fails."""
        _held.discard(self)
        self._ended.set()
        try:
            if (found := self._read()) is not None and found.get("token") == self._token:
                storage.remove(self.url, self._output)
        except Exception as refused:  # noqa: BLE001 - it ends by itself, and the stage, or its error, is what counts
            logger.warning("the lease of %s can't be given back: %s", self._output, refused)

    def check(self) -> None:
        """Say so if this run no longer holds the lease, as the store says now: before anything is published.

        Raises:
            MillError: another run has taken the output over, which it may where this one was stopped, or couldn't
                reach the store, for longer than a lease lasts; or the store can't say.
        """
        again = "run again when no other run is at work on it; what was generated is in the ledger"
        if not self._lost.is_set():
            self._keep()
        if self._lost.is_set():
            raise MillError(
                f"another run took over {self._output} while this one gave no sign of life for {self._lease_s:.0f} s: "
                f"{again}"
            )
        if self._thread is None or not self._thread.is_alive():
            raise MillError(f"the lease of {self._output} is no longer renewed: {again}")

    def _content(self) -> bytes:
        owner = {
            "token": self._token,
            "purpose": self._purpose,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process": process_identity(os.getpid()),
            "machine": machine_identity(),
            "beats": self._beats,
        }
        return json.dumps(owner).encode()

    def _create(self) -> bool:
        """Whether the file is now ours: made where there was none, which one of several can do."""
        if (found := self._read()) is not None:
            return found.get("token") == self._token
        # By what is read back: a store that answers with an error may have written all the same.
        return _create_file(self.url, self._content()) or (self._read() or {}).get("token") == self._token

    def _wait_for_takeover(self) -> None:
        """Return when the file that is there is gone or given up by its owner and removed.

        Raises:
            RequestError: its owner is at work.
        """
        first = found = self._read()
        if first is None:
            return
        alive = owner_is_alive(first)
        if alive is None:
            logger.warning("%s is held; looking for a sign of life for up to %.0f s", self._output, self._lease_s)
            began = time.monotonic()
            while found == first and time.monotonic() - began < self._lease_s:
                time.sleep(min(_LOOK_S, self._beat_s))
                found = self._read()
        if found is None:
            return
        if found != first or alive:
            raise RequestError(
                f"output: {self._output} is being written by another run ({found.get('purpose', 'starting')}, process "
                f"{found.get('pid')} on {found.get('host')}): wait for it, end it, or name another output; "
                f"a run that was killed is noticed within {self._lease_s:.0f} s"
            )
        logger.info("the run that held %s is gone; taking over", self.url)
        if self._read() == first:
            storage.remove(self.url, self._output)
        self._create()
        time.sleep(min(_SETTLE_S, self._beat_s))

    def _renew(self) -> None:
        while not self._lost.is_set() and not self._ended.wait(self._beat_s):
            try:
                self._keep()
            except Exception as error:  # noqa: BLE001 - whatever it is: a run must not go on without its lease
                logger.warning("the lease of %s can't be renewed: %s", self._output, error)

    def _keep(self) -> None:
        """Renew the lease if it is still ours. A file that is gone was given up: whoever removed it may have ended."""
        with self._keeping:
            found = self._read()
            if found is None or found.get("token") != self._token:
                self._lost.set()
                return
            self._beats += 1
            storage.write_bytes(self.url, self._content())

    def _read(self) -> dict[str, Any] | None:
        """Who holds the lease; None when nobody does."""
        try:
            if not storage.exists(self.url):
                return None
            data = storage.read_bytes(self.url, SMALL_BYTES)
        except MillError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            found = None
        return found if isinstance(found, dict) else {"unreadable": data.hex()}


def _create_file(url: str, data: bytes) -> bool:
    """Write a file where there is none, by a conditional write or an exclusive open; whether this call did."""
    fs, path = storage.filesystem(url)

    def create() -> bool:
        try:
            if isinstance(fs, LocalFileSystem):
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                with Path(path).open("xb") as file:
                    try:
                        file.write(data)
                        file.flush()
                    except OSError:  # a lease of nobody would be waited for
                        Path(path).unlink(missing_ok=True)
                        raise
            else:
                fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        except Exception:  # every store has an error of its own for a condition that fails
            if storage.exists(url):
                return False
            raise
        return True

    return patiently("create", url, fs, create)


def machine_identity() -> str:
    """What tells this machine, or container, since its last start from all others."""
    parts = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            is_link = path.endswith("/pid")
            parts.append(str(Path(path).readlink()) if is_link else Path(path).read_text(encoding="utf-8").strip())
        except OSError:
            parts.append("")
    return " ".join(parts)


def process_identity(pid: int) -> str | None:
    """What tells a process from a later one with its number; None when it is not running, "" when it can't be told."""
    if not Path("/proc/self/stat").exists():
        return ""
    try:
        # After the name, which may hold anything: state, ..., and 20 fields on, when it began in ticks since boot.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def owner_is_alive(owner: dict[str, Any]) -> bool | None:
    """Whether the process that holds a lease runs, as far as this machine can tell; None: it can't."""
    identity = owner.get("process")
    if not identity or owner.get("machine") != machine_identity() or not isinstance(owner.get("pid"), int):
        return None
    return process_identity(owner["pid"]) == identity
