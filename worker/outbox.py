"""Messages that wait for whoever reads them at the other end of a stream."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final, Generic, Protocol, TypeVar

from layermesh.shared.errors import MeshError
from layermesh.worker.limits import MAX_HELD_BYTES

MAX_MESSAGES: Final = 1 << 14
EASY_MESSAGES: Final = 256  # up to which more may be brought about


class Sized(Protocol):
    """A protobuf message, as far as this is concerned."""

    def ByteSize(self) -> int:  # noqa: N802 - protobuf's name
        """Return the bytes it takes on the wire."""
        ...


M = TypeVar("M", bound=Sized)


class Outbox(Generic[M]):
    """Messages in order, for one reader; where more wait than makes sense they are dropped, and it ends and `is_overrun`.

    For the event loop's thread only.
    """

    def __init__(self, max_bytes: int = MAX_HELD_BYTES) -> None:
        self.is_overrun = False
        self._waiting: deque[M] = deque()
        self._num_bytes = 0
        self._max_bytes = max_bytes
        self._ended = False
        self._changed = asyncio.Event()
        self._eased = asyncio.Event()
        self._eased.set()

    def put(self, message: M) -> None:
        """Add a message; one that comes after the end is dropped."""
        if self._ended:
            return
        self._waiting.append(message)
        self._num_bytes += message.ByteSize()
        if len(self._waiting) > MAX_MESSAGES or self._num_bytes > self._max_bytes:
            self._waiting.clear()
            self._num_bytes = 0
            self.is_overrun = True
            self.end()
        elif len(self._waiting) > EASY_MESSAGES:
            self._eased.clear()
        self._changed.set()

    def end(self) -> None:
        """Let it end behind what waits."""
        self._ended = True
        self._changed.set()
        self._eased.set()

    async def ease(self) -> None:
        """Return once few wait, so that no more is brought about than is read. Raises MeshError after an overrun."""
        await self._eased.wait()
        if self.is_overrun:
            raise MeshError("what comes back is read too slowly.")

    async def messages(self) -> AsyncIterator[M]:
        """Take them, as they come, until the end."""
        while True:
            while self._waiting:
                message = self._waiting.popleft()
                self._num_bytes -= message.ByteSize()
                if len(self._waiting) <= EASY_MESSAGES:
                    self._eased.set()
                yield message
            if self._ended:
                return
            self._changed.clear()
            await self._changed.wait()
