"""Where the engines of a feeder come from in tests: from a function, alone in their memory or beside others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from augment.feeding.registry import SharedMemory


class Engines:
    """Engines that a function makes."""

    def __init__(self, make: Callable[[], Any], memory: SharedMemory | None = None) -> None:
        memory = memory or SharedMemory()
        self.make, self.reserve, self.release = make, memory.reserve, memory.release
