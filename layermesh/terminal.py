"""What the user sees on stderr: a status line, a download's progress, notes and errors."""

import sys
import time
from typing import Final

from layermesh.shared.units import format_bytes

_REFRESH_SECONDS: Final = 0.1
_MAKE_ROOM: Final = "\x1bD\x1b[A"  # scroll if this is the last line, and come back
_SAVE: Final = "\x1b7"
_BELOW: Final = "\x1b[B\r\x1b[2K"
_RESTORE: Final = "\x1b8"


class StatusLine:
    """One line below the text that tells how things go; nothing at all where stderr is no terminal.

    The answer may be written to the same terminal meanwhile: the line is drawn below the cursor, which stays where it is.
    """

    def __init__(self) -> None:
        self._enabled = sys.stderr.isatty()
        self._shown_at = 0.0
        self._visible = False

    def show(self, text: str) -> None:
        """Draw `text` instead of what was there, a few times a second at most."""
        now = time.monotonic()
        if not self._enabled or now - self._shown_at < _REFRESH_SECONDS:
            return
        self._shown_at = now
        self._visible = True
        sys.stderr.write(f"{_MAKE_ROOM}{_SAVE}{_BELOW}{text}{_RESTORE}")
        sys.stderr.flush()

    def clear(self) -> None:
        """Take the line away, before something else is written or at the end."""
        if self._visible:
            sys.stderr.write(f"{_SAVE}{_BELOW}{_RESTORE}")
            sys.stderr.flush()
            self._visible = False


class DownloadLine:
    """Shows the progress of a download: a bar's worth of figures on a terminal, else one line when it begins."""

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
        note(f"fetching {what}{size}")

    def advance(self, num_bytes: int) -> None:
        """Note `num_bytes` more."""
        self._done += num_bytes
        now = time.monotonic()
        if not sys.stderr.isatty() or now - self._shown_at < _REFRESH_SECONDS:
            return
        self._shown_at = now
        rate = self._done / max(now - self._began, 1e-3)
        share = f" of {format_bytes(self._total)} ({self._done / self._total:.0%})" if self._total else ""
        sys.stderr.write(f"\r\x1b[2K  {format_bytes(self._done)}{share}, {format_bytes(rate)}/s")
        sys.stderr.flush()

    def finish(self) -> None:
        """End, complete or not."""
        if sys.stderr.isatty() and self._shown_at:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
        self._shown_at = 0.0


def note(text: str) -> None:
    """Write a line for the user's eyes to stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
