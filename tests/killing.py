"""Work in a process of its own that is killed between any two changes of files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def killed_at(operation: int, work: Callable[[], object]) -> bool:
    """Whether work in a process of its own was killed when it was about to make or remove so many files."""
    child = os.fork()
    if child == 0:
        left = operation

        def counted(call: Callable[..., Any]) -> Callable[..., Any]:
            def instead(*args: Any, **named: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    os._exit(9)
                return call(*args, **named)

            return instead

        code = 1
        try:
            os.unlink, Path.replace = counted(os.unlink), counted(Path.replace)  # type: ignore[method-assign]
            work()
            code = 0
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9
