"""Measuring while nobody else on this machine does or is hard at work, so that nobody measures the others."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

if os.name == "posix":
    import fcntl

PATIENCE_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 0.02


@contextmanager
def measuring_turn() -> Iterator[None]:
    """Wait until no other process of this user measures or is `at_work`; after a while go on anyway."""
    with _turn(is_shared=False):
        yield


@contextmanager
def at_work() -> Iterator[None]:
    """Have those who want to measure wait; waits for one who does. Any number may be at work."""
    with _turn(is_shared=True):
        yield


@contextmanager
def _turn(*, is_shared: bool) -> Iterator[None]:
    descriptor = _open()
    try:
        if descriptor is not None:
            _wait(descriptor, is_shared=is_shared)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _open() -> int | None:
    """Return the file that is locked; None where there are no such locks."""
    if os.name != "posix":
        return None
    with suppress(OSError):  # there may be no folder for temporary files that can be written
        path = Path(tempfile.gettempdir()) / f"layermesh-measuring-{os.getuid()}"
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    return None


def _wait(descriptor: int, *, is_shared: bool) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError):
            fcntl.flock(descriptor, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return
        time.sleep(_LOOK_SECONDS)
