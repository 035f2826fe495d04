"""Noticing that what a stage has in hand does not come to an end, without waking anybody for each frame."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

CHECK_SECONDS: Final = 0.25


class Watch:
    """One piece of work that may take `seconds` from its turn on, else `late` is called; 0: as long as it likes.

    What waits for its turn is not late.
    """

    def __init__(self, seconds: float, late: Callable[[], None]) -> None:
        self.seconds = seconds
        self.late = late
        self._began: float | None = None

    def begin(self) -> None:
        """Note that the turn has come; from any thread."""
        self._began = time.monotonic()

    def is_late(self, now: float) -> bool:
        """Whether it has taken too long."""
        return self._began is not None and now - self._began > self.seconds


class Watches:
    """Looks at all that is under way a few times a second. For the event loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._under_way: set[Watch] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, watch: Watch) -> None:
        """Watch over it until it is ended."""
        if watch.seconds:
            self._under_way.add(watch)
            if self._timer is None:
                self._timer = self._loop.call_later(CHECK_SECONDS, self._look)

    def end(self, watch: Watch) -> None:
        """Note that it has come to its end."""
        self._under_way.discard(watch)

    def close(self) -> None:
        """Look no more."""
        self._under_way.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        now = time.monotonic()
        for watch in [watch for watch in self._under_way if watch.is_late(now)]:
            self._under_way.discard(watch)
            watch.late()
        self._timer = self._loop.call_later(CHECK_SECONDS, self._look) if self._under_way else None
