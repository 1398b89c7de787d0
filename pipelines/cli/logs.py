"""What the command line tells of logs: our own warnings, a line each, or with --debug everything; nothing steers."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings

from pipelines.secrets import told
from pipelines.terminal import visible

PACKAGES = ("pipelines", "augment", "difficulty", "sharding")
NOISY_LOGGERS = ("apache_beam", "vllm", "transformers", "httpx")
QUIET_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "CRITICAL",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
"""What keeps the processes of an engine quiet, unless the user has set it."""

PER_MINUTE = 10
"""Warnings of one kind that are shown within a minute: a server that is down tells of every request."""


def set_up_logging(debug: bool) -> None:
    """Logs on standard error: all of them, or our own warnings and what no message of ours tells."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Escaped(logging.BASIC_FORMAT if debug else "%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO if debug else logging.ERROR, handlers=[handler])
    logging.captureWarnings(debug)
    if not debug:
        handler.addFilter(_Seldom())
        for name in PACKAGES:
            logging.getLogger(name).setLevel(logging.WARNING)
        # A failure reaches the user as one message; these would tell it as pages of traceback.
        for name in NOISY_LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        for name, value in QUIET_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        warnings.simplefilter("ignore")


class _Escaped(logging.Formatter):
    """Names and texts in a record may be anyone's, and the URLs hold a key."""

    def format(self, record: logging.LogRecord) -> str:
        level = record.levelname
        record.levelname = level if self._fmt == logging.BASIC_FORMAT else level.lower()
        try:
            return visible(told(super().format(record)))
        finally:
            record.levelname = level


class _Seldom(logging.Filter):
    """Lets so many of a kind through in a minute, and says where the rest is."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        kind, now = str(record.msg), time.monotonic()
        since, count = self._seen.get(kind, (now, 0))
        if now - since > 60:
            since, count = now, 0
        self._seen[kind] = since, count + 1
        if count == PER_MINUTE - 1:
            record.msg, record.args = f"{record.getMessage()} (and more of this kind: --debug shows all)", ()
        return count < PER_MINUTE
