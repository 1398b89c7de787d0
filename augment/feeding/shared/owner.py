"""Who owns the engines of a job on this machine, and how the others get at them.

A runner may work with several processes on one machine, and an accelerator has room for one engine. The process that
holds the job's lock owns the engines of all its models; the others connect to its socket and ask. Nothing has to be
cleaned up for this to go on after a kill: the system lets go of a dead owner's lock, and the connections to it break,
so that the next one to come becomes the owner. Another job on the machine has another lock, and engines of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import socket
import threading
import time
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Protocol

import msgspec

from augment.engines import reaper
from augment.engines.config import ModelConfig
from augment.feeding.config import FeedingConfig
from augment.feeding.feeder import Feeder
from augment.feeding.shared.frames import LENGTH_BYTES, Ask, Begun, Broken, Frame, Hello, Made, Refused, pack, unpack
from augment.feeding.tickets import Completed, FeederClosed, Job, Partial, Result
from sharding.errors import MillError
from sharding.hashing import fingerprint
from sharding.storage.private import private_folder

logger = logging.getLogger(__name__)

_LEFT_BEHIND_S = 3600.0
"""A lock that nobody holds and that was taken so long ago is removed; by then its engines have ended too."""

_ACCEPT_AGAIN_S = 1.0

_LAST_WORDS_S, _POLL_S = 2.0, 0.01
"""So long an owner that ends waits for those who are slow to read its last answers."""

_MAX_SOCKET_PATH_BYTES = 100  # 104 on macOS, 108 on Linux, with the final zero


class Feeders(Protocol):
    """The feeders of a process: `feeding.registry.Registry`."""

    def acquire(self, model: ModelConfig, config: FeedingConfig, *, job: str, name: str) -> Feeder: ...

    def release(self, feeder: Feeder) -> None: ...


class EngineHost:
    """This process's place among those that share the engines of a job.

    Args:
        job: tells the job from all others.
        feeders: of this process; they make what the others ask for.
    """

    def __init__(self, job: str, feeders: Feeders) -> None:
        name = fingerprint([job], 8)
        folder = private_folder()
        if len(os.fsencode(folder)) > _MAX_SOCKET_PATH_BYTES - 24:  # names of sockets are short by law
            folder = private_folder(Path("/tmp"))
        self._lock_path = folder / f"{name}.lock"
        self.address = str(folder / f"{name}.sock")
        self._job, self._feeders = job, feeders
        self._changing = threading.Lock()
        self._lock_file: IO[str] | None = None
        self._listener: socket.socket | None = None
        self._connections: dict[socket.socket, _Line] = {}

    def try_own(self) -> bool:
        """Whether this process owns the engines; becomes the owner if there is none."""
        with self._changing:
            if self._lock_file is not None:
                return True
            file = _try_lock(self._lock_path)
            if file is None:
                return False
            self._lock_file = file
            before = file.read()
            file.seek(0)
            file.truncate()
            file.write(str(os.getpid()))
            file.flush()
            self._listen()
            atexit.register(self.disown)  # registered before its engines are, and so called after they have ended
            _sweep(self._lock_path.parent)
        if before.isdigit() and not reaper.is_alive(int(before)):
            # It was killed. Its watcher would end its engine too, but later than we want the memory.
            reaper.end_marked(reaper.mark_prefix(int(before)))
        return True

    def stop_listening(self) -> None:
        """Let nobody new ask; who is connected already still gets answers."""
        with self._changing:
            listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            Path(self.address).unlink(missing_ok=True)

    def hang_up(self) -> None:
        """Answer nobody any more, once what was answered is on its way; the others look for another owner."""
        self.stop_listening()
        until = time.monotonic() + _LAST_WORDS_S
        while any(line.is_behind for line in list(self._connections.values())) and time.monotonic() < until:
            time.sleep(_POLL_S)
        with self._changing:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def disown(self) -> None:
        """Let another process be the owner. To be called when the engines have ended."""
        self.hang_up()
        atexit.unregister(self.disown)
        with self._changing:
            file, self._lock_file = self._lock_file, None
        if file is not None:
            self._lock_path.unlink(missing_ok=True)
            file.truncate(0)
            file.close()

    def _listen(self) -> None:
        Path(self.address).unlink(missing_ok=True)  # of an owner that was killed
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.address)
        self._listener.listen()
        threading.Thread(target=self._answer, args=(self._listener,), name="engine-host", daemon=True).start()

    def _answer(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError as error:
                if self._listener is not listener:
                    return
                logger.warning("an engine that is shared can't be asked for now: %s", error)  # too many files are open
                time.sleep(_ACCEPT_AGAIN_S)
                continue
            with self._changing:
                if self._listener is None:
                    connection.close()
                    return
                line = self._connections[connection] = _Line(connection)
            threading.Thread(target=self._serve, args=(connection, line), name="engine-host-line", daemon=True).start()

    def _serve(self, connection: socket.socket, line: _Line) -> None:
        """Take the requests of one process to the feeder, until it hangs up."""
        feeder: Feeder | None = None
        try:
            with connection.makefile("rb") as stream:
                hello = _read(stream)
                if isinstance(hello, Hello):
                    feeder = self._feeders.acquire(*hello.sections(), job=self._job, name=hello.name)
                while feeder is not None and (ask := _read(stream)) is not None:
                    if isinstance(ask, Ask):
                        feeder.submit(Job(ask.request, ask.number, line))
        except (OSError, msgspec.MsgspecError) as error:
            logger.debug("a process that shares an engine of this one is gone: %s", error)
        except MillError as error:
            line.fail(error)
        finally:
            line.hang_up()
            with self._changing:
                self._connections.pop(connection, None)
            if feeder is not None:
                self._feeders.release(feeder)


class _Line:
    """Where results for another process go; a thread of its own sends them, so that nobody waits for a slow reader."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._outbox: SimpleQueue[Frame | None] = SimpleQueue()
        threading.Thread(target=self._send, name="engine-host-answers", daemon=True).start()

    def deliver(self, result: Result) -> None:
        """Send a result; the context of its job is the number it was asked under."""
        if isinstance(result, Completed):
            self._outbox.put(Made(result.context, result.generation))
        else:
            self._outbox.put(Refused(result.context, result.error, result.may_pass))

    def save(self, partial: Partial) -> None:
        """Send what there is of a request."""
        self._outbox.put(Begun(partial.context, partial.generation))

    def fail(self, error: BaseException) -> None:
        """Send why there will be no results; when the feeder was merely closed, another process can do better."""
        self._outbox.put(None if isinstance(error, FeederClosed) else Broken(str(error)))

    @property
    def is_behind(self) -> bool:
        """Whether something waits to be sent."""
        return not self._outbox.empty()

    def hang_up(self) -> None:
        self._outbox.put(None)

    def _send(self) -> None:
        try:
            while (frame := self._outbox.get()) is not None:
                self._connection.sendall(pack(frame))
        except OSError as error:
            logger.debug("a process that shares an engine of this one is gone: %s", error)
        finally:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
            self._connection.close()


def _read(stream: IO[bytes]) -> Frame | None:
    """The next frame, or None at the end."""
    length = stream.read(LENGTH_BYTES)
    if len(length) < LENGTH_BYTES:
        return None
    size = int.from_bytes(length)
    body = stream.read(size)
    return unpack(body) if len(body) == size else None


def _sweep(folder: Path) -> None:
    """Remove what jobs of old have left whose last owner was killed."""
    for path in folder.glob("*.lock"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _LEFT_BEHIND_S and (file := _try_lock(path)) is not None:
                path.with_suffix(".sock").unlink(missing_ok=True)
                path.unlink(missing_ok=True)
                file.close()


def _try_lock(path: Path) -> IO[str] | None:
    """The locked file, which says who had it last, or None when another process has it."""
    import fcntl

    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                return file
        file.close()  # its last owner has just removed it
