"""A terminal to run layermesh in, and the screen that its output makes."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_LAUNCH = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C comes here
os.execv(sys.executable, [sys.executable, "-m", "layermesh", *sys.argv[1:]])
"""
_TOKEN = re.compile(r"\x1b(?:\[(\d*)([A-Z])|([78D]))|(.)", re.DOTALL)


class Screen:
    """What a terminal of `columns` by `lines` shows, for the few sequences that layermesh uses; others raise."""

    def __init__(self, columns: int = 80, lines: int = 24) -> None:
        self.columns, self.lines = columns, lines
        self.rows = [[" "] * columns for _ in range(lines)]
        self.gone: list[str] = []  # lines that were scrolled off the top
        self.row = self.column = 0
        self.wraps = False  # the cursor hangs at the right edge, and the next character begins a new line
        self._saved = (0, 0, False)

    def feed(self, output: str) -> None:
        for match in _TOKEN.finditer(output):
            count, command, short, char = match.groups()
            if char is not None:
                self._put(char)
            elif short == "D":
                self._line_feed()
            elif short == "7":
                self._saved = (self.row, self.column, self.wraps)
            elif short == "8":
                self.row, self.column, self.wraps = self._saved
            elif command in ("A", "B"):
                step = int(count or 1) * (-1 if command == "A" else 1)
                self.row, self.wraps = min(max(self.row + step, 0), self.lines - 1), False
            elif command == "K" and count == "2":
                self.rows[self.row] = [" "] * self.columns
            else:
                raise AssertionError(f"a sequence this screen does not know: {match[0]!r}")

    @property
    def text(self) -> str:
        """All lines so far without what trails them, those off the top too."""
        return "\n".join([*self.gone, *("".join(row).rstrip() for row in self.rows)]).rstrip()

    def _put(self, char: str) -> None:
        if char == "\n":
            self.column = 0
            self._line_feed()
        elif char == "\r":
            self.column, self.wraps = 0, False
        elif char == "\t":
            self.column = min((self.column // 8 + 1) * 8, self.columns - 1)
        elif char == "\x1b":
            raise AssertionError("an escape that begins no sequence")
        elif unicodedata.combining(char) == 0:
            self._write(char, 2 if unicodedata.east_asian_width(char) in "WF" else 1)

    def _write(self, char: str, width: int) -> None:
        if self.wraps or self.column + width > self.columns:
            self.column = 0
            self._line_feed()
        self.rows[self.row][self.column : self.column + width] = [char, *[""] * (width - 1)]
        self.wraps = self.column + width == self.columns
        self.column = min(self.column + width, self.columns - 1)

    def _line_feed(self) -> None:
        self.wraps = False
        if self.row < self.lines - 1:
            self.row += 1
            return
        self.gone.append("".join(self.rows.pop(0)).rstrip())
        self.rows.append([" "] * self.columns)


class TerminalProcess:
    """A layermesh command in a terminal of its own, of which it leads the session."""

    def __init__(self, process: "subprocess.Popen[bytes]", master: int) -> None:
        self.process = process
        self.output = ""
        self.pieces = 0
        self._master = master
        self._settings = termios.tcgetattr(master)

    def read_until(self, holds: Callable[[], bool], seconds: float = 40) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"it did not come about in time: {self.output[-2000:]!r}"
            if not self._read(0.01) and self.process.returncode is None and self.process.poll() is not None:
                assert holds(), f"it ended with {self.process.returncode}: {self.output[-2000:]!r}"

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def end(self, seconds: float) -> int:
        """Wait for the end, `seconds` at most, and return the exit status."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it did not end in {seconds} s: {self.output[-2000:]!r}"
            self._read(0.01)
        while self._read(0):
            pass
        return self.process.returncode

    @property
    def is_restored(self) -> bool:
        """Whether the terminal's settings are what they were."""
        return termios.tcgetattr(self._master) == self._settings

    @property
    def companions(self) -> list[int]:
        """The processes of its session that still run."""
        return [pid for pid in _processes() if _session(pid) == self.process.pid and pid != self.process.pid]

    def _read(self, seconds: float) -> bool:
        if not select.select([self._master], [], [], seconds)[0]:
            return False
        try:
            piece = os.read(self._master, 65536)
        except OSError:  # the other side is closed
            return False
        self.output += piece.decode("utf-8", "replace")
        self.pieces += 1
        return bool(piece)


@contextmanager
def in_terminal(
    *arguments: str | Path, columns: int = 80, lines: int = 24, stdout: int | None = None, **environ: str
) -> Iterator[TerminalProcess]:
    """Run a layermesh command in a terminal; its stdout goes there too, or to the file `stdout`."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    command = [sys.executable, "-c", _LAUNCH, *map(str, arguments)]
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave if stdout is None else stdout, stderr=slave, env=child_environ(**environ)
    )
    try:
        yield TerminalProcess(process, master)
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        os.close(slave)
        os.close(master)


def child_environ(**more: str) -> dict[str, str]:
    """The environment for a layermesh process of a test."""
    root = str(Path(__file__).parents[2])
    return os.environ | {"PYTHONPATH": root, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1"} | more


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _session(pid: int) -> int | None:
    """The session of a process; None for one that has ended, whether or not anybody took note of it."""
    try:
        state, _, _, session = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:4]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state == "Z" else int(session)
