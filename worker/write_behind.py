"""Steps in a thread, in order, while the event loop goes on, never more than a few steps ahead of them."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Final, Self

from layermesh.worker.finishing import to_its_end

MOST_BEHIND: Final = 4  # steps that wait or are under way: enough for both sides to go on while the other is held up


class WriteBehind:
    """A context manager that runs steps one after the other in a thread; once one has failed, no later one is begun.

    Whoever leaves, for whatever reason, waits until all that was put is done: what has come need not come again, and a thread
    has its file in its hands until then.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="layermesh-writer")
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._has_failed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for the steps that are left; raises what one of them raised, unless this ends because it was cancelled."""
        try:
            await self._wait_for_all()
        except Exception:
            if not isinstance(error, asyncio.CancelledError):
                raise
        finally:
            self._thread.shutdown(wait=False)

    async def put(self, step: Callable[[bytes], None], data: bytes) -> None:
        """Have `step` done with `data`, waiting while too many are waiting; raises what an earlier one raised."""
        if len(self._waiting) >= MOST_BEHIND:
            await to_its_end(self._waiting.popleft())
        loop = asyncio.get_running_loop()
        self._waiting.append(loop.run_in_executor(self._thread, self._take, step, data))

    async def _wait_for_all(self) -> None:
        ended = await to_its_end(asyncio.gather(*self._waiting, return_exceptions=True))
        self._waiting.clear()
        for problem in ended:
            if problem is not None:
                raise problem

    def _take(self, step: Callable[[bytes], None], data: bytes) -> None:
        if self._has_failed:
            return
        try:
            step(data)
        except BaseException:
            self._has_failed = True
            raise
