"""What reaches a terminal: whatever is printed for a person goes through `Terminal`, and no character of it steers.

Names, reasons and texts come from outputs, servers and documents, which are anyone's. So nothing that is printed is
read as markup, and control characters are spelled out where rich hands over what it has laid out, whoever made it. A
stream that can't be written ends no run: what it is about is in the output folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from typing import IO, Any, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.style import Style

# A corpus may hold what steers a terminal or turns a page's direction.
_CONTROLS = {code: chr(0x2400 + code) for code in range(32) if code not in (9, 10)} | {127: "\u2421"}
_DIRECTIONS = (*range(0x80, 0xA0), 0x061C, *range(0x200E, 0x2010), *range(0x2028, 0x202F), *range(0x2066, 0x206A))
_VISIBLE = _CONTROLS | {code: f"\u27e8U+{code:04X}\u27e9" for code in (*_DIRECTIONS, 0xFEFF)}
_HIDDEN = re.compile("[" + "".join(map(re.escape, map(chr, _VISIBLE))) + "\ud800-\udfff]")


def visible(text: str) -> str:
    """The text with control and direction characters spelled out; ends of lines and tabs stay."""
    if _HIDDEN.search(text) is None:
        return text
    return text.translate(_VISIBLE).encode("utf-8", "backslashreplace").decode()


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 segment", "1,200 segments", "2 copies", "3 losses"."""
    if number == 1:
        return f"1 {noun}"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{number:,} {noun[:-1]}ies"
    return f"{number:,} {noun}{'es' if noun.endswith('ss') else 's'}"


def number(value: float) -> str:
    """A number for a person: 1,234 · 12.3k · 4.5M."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            scaled = value / (1e3 if unit == "k" else limit)
            return f"{scaled:,.0f}{unit}" if abs(scaled) >= 100 else f"{scaled:.3g}{unit}"
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def shortened(text: str, room: int) -> str:
    """The text in at most `room` characters, cut in its middle: what names have in common is often their beginning."""
    if len(text) <= room:
        return text
    before = max(1, room // 2)
    return f"{text[:before]}…{text[len(text) - max(0, room - before - 1) :]}"


class Terminal(Console):
    """Standard output or standard error, for people.

    Attributes:
        lost: why something could not be written, other than that nobody reads any more (`| head`).
        is_unread: nobody reads any more.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)
        self.lost: OSError | None = None
        self.is_unread = False

    @property
    def file(self) -> IO[str]:
        return cast(IO[str], _Stream(super().file, self))

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control:  # rich's own: moves of the cursor
                yield segment
            else:
                yield Segment(visible(segment.text), _unlinked(segment.style))

    def print_json_line(self, value: Any) -> None:
        """One JSON object on a line, for programs."""
        self.file.write(json.dumps(value).replace("\x7f", "\\u007f") + "\n")  # all others are escaped already
        self.file.flush()

    @contextlib.contextmanager
    def lasting(self) -> Iterator[None]:
        """What is written within may fail: that is taken note of, and the program goes on."""
        try:
            yield
        except BrokenPipeError:
            self.is_unread = True
            self.drop_rest()
        except OSError as error:
            self.lost = error

    def drop_rest(self) -> None:
        """Have what the stream still holds go nowhere, so that the end of the process does not fail on it."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, super().file.fileno())
            os.close(nowhere)


def _unlinked(style: Style | None) -> Style | None:
    return style.update_link(None) if style is not None and style.link else style


class _Stream:
    """A text stream that writes what its encoding can say, and goes on when it can't write at all."""

    def __init__(self, stream: IO[str], terminal: Terminal) -> None:
        self._stream, self._terminal = stream, terminal

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        with self._terminal.lasting():
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        with self._terminal.lasting():
            self._stream.flush()
