"""The engine of another process on this machine: where several processes share an accelerator, one owns the engine.

Looks like any engine to its feeder; its requests go to the feeder of the owner, who keeps the real one full with those
of all processes. When the owner goes, this engine is dead, and whoever comes first starts another:
see `feeding.shared.owner`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time

import msgspec

from augment.engines.protocol import ELSEWHERE, EngineDead, Generation, GenerationRequest, Interrupted, RequestRejected
from augment.feeding.shared.frames import LENGTH_BYTES, Ask, Begun, Broken, Hello, Made, Refused, pack, unpack
from sharding.errors import MillError

_CONNECT_S = 5.0
"""An owner listens as soon as it is one; where nobody has for so long, there is none any more."""

_POLL_S = 0.1


class ElsewhereEngine:
    """Asks the owner of the engine.

    Args:
        address: path of the owner's socket.
        hello: the model and how it is fed; the owner shares one feeder among equal ones.
        capacity: requests asked for at once; the owner holds back what its engine can't take yet.
    """

    family = ELSEWHERE
    version = ""
    memory_share = 0.0

    def __init__(self, address: str, hello: Hello, *, capacity: int) -> None:
        self._address = address
        self._hello = hello
        self.capacity = capacity
        self._numbers = itertools.count()
        self._answers: dict[int, asyncio.Future[Generation]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._listening: asyncio.Task[None] | None = None
        self._error: MillError = EngineDead("no process owns the engine yet")

    async def start(self) -> None:
        deadline = time.monotonic() + _CONNECT_S
        while True:
            try:
                reader, self._writer = await asyncio.open_unix_connection(self._address)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise EngineDead(f"the process that owned the engine is gone ({error})") from error
                await asyncio.sleep(_POLL_S)
        self._writer.write(pack(self._hello))
        self._listening = asyncio.get_running_loop().create_task(self._listen(reader))

    async def generate(self, request: GenerationRequest) -> Generation:
        if self._writer is None:
            raise self._error
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        self._writer.write(pack(Ask(number, request)))
        try:
            return await answer
        finally:
            self._answers.pop(number, None)

    async def interrupt(self) -> None:
        """Whoever tells this process to end tells the owner too, and the owner says what there is."""

    async def close(self) -> None:
        self._end(EngineDead("the connection to the engine was closed"))
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait([self._listening])

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                length = int.from_bytes(await reader.readexactly(LENGTH_BYTES))
                frame = unpack(await reader.readexactly(length))
                if isinstance(frame, Broken):
                    self._end(MillError(frame.error))
                    return
                if (
                    isinstance(frame, Made | Begun | Refused)
                    and (answer := self._answers.get(frame.number)) is not None
                ):
                    if answer.done():
                        continue
                    if isinstance(frame, Made):
                        answer.set_result(frame.generation)
                    elif isinstance(frame, Begun):
                        answer.set_exception(Interrupted("the owner of the engine ends", frame.generation))
                    else:
                        answer.set_exception(RequestRejected(frame.error, may_pass=frame.may_pass))
        except (OSError, EOFError, msgspec.MsgspecError) as error:  # EOFError: IncompleteReadError is one
            self._end(EngineDead(f"the process that owns the engine is gone ({error})"))

    def _end(self, error: MillError) -> None:
        self._error = error
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.close()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(error)
