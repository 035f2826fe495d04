"""What the user sees: JSON on stdout; on stderr a status line, a download's progress, notes and errors."""

import json
import os
import sys
import time
import unicodedata
from typing import Any, Final, TextIO

from layermesh.shared.units import format_bytes

_REFRESH_SECONDS: Final = 0.1
_USUAL_COLUMNS: Final = 80  # of a terminal that does not say
_TAB_COLUMNS: Final = 8
_MAKE_ROOM: Final = "\x1bD\x1b[A"  # scroll if this is the last line, and come back
_SAVE: Final = "\x1b7"
_BELOW: Final = "\x1b[B\r\x1b[2K"
_RESTORE: Final = "\x1b8"


class StatusLine:
    """One line below the text that tells how things go; nothing at all where stderr is no terminal.

    The answer may be written to the same terminal meanwhile: the line is drawn below the cursor, which stays where it
    is.
    """

    def __init__(self) -> None:
        self._enabled = _is_terminal(sys.stderr)
        self._shown_at = 0.0
        self._visible = False
        self._column = 0  # of the cursor; equal to the width when the next character will wrap

    def show(self, text: str) -> None:
        """Draw `text`, or what of it fits a line, instead of what was there; a few times a second at most."""
        now = time.monotonic()
        if not self._enabled or now - self._shown_at < _REFRESH_SECONDS:
            return
        width = _columns()
        if self._column >= width:  # moving away from the right edge and back would lose that the next character wraps
            return
        self._shown_at = now
        self._visible = True
        sys.stderr.write(f"{_MAKE_ROOM}{_SAVE}{_BELOW}{text[: width - 1]}{_RESTORE}")
        sys.stderr.flush()

    def clear(self) -> None:
        """Take the line away, before something else is written or at the end."""
        if self._visible:
            sys.stderr.write(f"{_SAVE}{_BELOW}{_RESTORE}")
            sys.stderr.flush()
            self._visible = False

    def note(self, text: str) -> None:
        """Write a line for the user's eyes to stderr; text on the same terminal goes on below it."""
        self.clear()
        if self._enabled and self._column:
            sys.stderr.write("\n")
            self._column = 0
        note(harmless(text))

    def follow(self, text: str) -> None:
        """Note that `text` was written to the terminal, to know how near the right edge the cursor is."""
        if self._enabled:
            self._column = _column_after(text, self._column, _columns())


class DownloadLine:
    """Shows the progress of a download or of packing: a bar's worth of figures on a terminal, else one line when it begins."""

    def __init__(self) -> None:
        self._what = ""
        self._total: int | None = None
        self._done = 0
        self._began = 0.0
        self._shown_at = 0.0

    def start(self, what: str, total_bytes: int | None) -> None:
        """Begin on `what`."""
        self._what, self._total, self._done = what, total_bytes, 0
        self._began = time.monotonic()
        size = f" ({format_bytes(total_bytes)})" if total_bytes else ""
        note(f"{what}{size}")

    def advance(self, num_bytes: int) -> None:
        """Note `num_bytes` more."""
        self._done += num_bytes
        now = time.monotonic()
        if not _is_terminal(sys.stderr) or now - self._shown_at < _REFRESH_SECONDS:
            return
        self._shown_at = now
        rate = self._done / max(now - self._began, 1e-3)
        share = f" of {format_bytes(self._total)} ({self._done / self._total:.0%})" if self._total else ""
        sys.stderr.write(f"\r\x1b[2K  {format_bytes(self._done)}{share}, {format_bytes(rate)}/s")
        sys.stderr.flush()

    def finish(self) -> None:
        """End, complete or not."""
        if _is_terminal(sys.stderr) and self._shown_at:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
        self._shown_at = 0.0


def restart_line() -> None:
    """Go back to the beginning of the line, over the ^C that a terminal shows there."""
    if _is_terminal(sys.stderr):
        sys.stderr.write("\r")


def note(text: str) -> None:
    """Write a line for the user's eyes to stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def print_json(value: Any) -> None:
    """Write one JSON document as a line to stdout, in plain characters where stdout takes them."""
    ascii_only = (sys.stdout.encoding or "ascii").lower() not in ("utf-8", "utf8")
    print(json.dumps(value, ensure_ascii=ascii_only))  # noqa: T201


def print_json_line(value: Any) -> None:
    """Write one JSON document as a line to stdout, for whoever reads there to have at once."""
    print_json(value)
    sys.stdout.flush()


def harmless(text: str) -> str:
    """Return `text` as it may be shown on a terminal: what could move its cursor or reprogram it becomes U+FFFD."""
    return "".join("\ufffd" if unicodedata.category(char) == "Cc" and char not in "\n\t" else char for char in text)


def _is_terminal(stream: TextIO) -> bool:
    """Tell whether `stream` is a terminal that understands escape sequences."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or _USUAL_COLUMNS
    except OSError:
        return _USUAL_COLUMNS


def _column_after(text: str, column: int, width: int) -> int:
    """Return the column of the cursor after `text`, from `column` on, in a terminal that wraps at `width`."""
    for char in text:
        if char == "\n":
            column = 0
        elif char == "\t":
            column = min((column // _TAB_COLUMNS + 1) * _TAB_COLUMNS, width - 1)
        elif cells := _cells(char):
            column = column + cells if column + cells <= width else cells
    return column


def _cells(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
