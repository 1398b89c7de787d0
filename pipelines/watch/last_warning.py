"""The last warning of a run, for who shows how far it is."""

from __future__ import annotations

import logging

PACKAGES = ("pipelines", "augment", "difficulty", "sharding")


class LastWarning(logging.Handler):
    """Remembers the last warning of this project's own loggers; on a panel, in place of printing it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.message: str | None = None
        self._before: list[tuple[logging.Logger, int, bool]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.message = record.getMessage()

    def listen(self, *, keep_to_itself: bool) -> None:
        for name in PACKAGES:
            heard = logging.getLogger(name)
            self._before.append((heard, heard.level, heard.propagate))
            if not heard.isEnabledFor(logging.WARNING):
                heard.setLevel(logging.WARNING)
                heard.propagate = False  # what was not shown before isn't now
            heard.propagate = heard.propagate and not keep_to_itself
            heard.addHandler(self)

    def leave(self) -> None:
        for heard, level, propagate in self._before:
            heard.removeHandler(self)
            heard.setLevel(level)
            heard.propagate = propagate
        self._before.clear()
