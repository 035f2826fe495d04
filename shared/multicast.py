"""Multicast DNS on all networks of this machine, as they come and go."""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from typing import Final

from zeroconf import Error
from zeroconf.asyncio import AsyncZeroconf

from layermesh.shared.interfaces import Interface, local_interfaces

POLL_SECONDS: Final = 2.0
_CLOSING_SECONDS: Final = 5.0
_ALONE: Final = "this machine is on no network that carries multicast"

Tend = Callable[[AsyncZeroconf, tuple[Interface, ...]], Awaitable[None]]
Report = Callable[[str | None], None]


class Multicast:
    """An mDNS node in a thread of its own, from `start` to `close`.

    `tend` is awaited in that thread at first and then every `poll_seconds`, with the interfaces that are up. Nothing that fails
    goes further than to `report`, which is told what the matter is, or None, whenever that changes.
    """

    def __init__(self, tend: Tend, report: Report, poll_seconds: float = POLL_SECONDS) -> None:
        self._tend = tend
        self._report = report
        self._poll_seconds = poll_seconds
        self._problem: str | None = None
        self._stop: Future[None] = Future()
        self._thread = threading.Thread(target=self._main, name="layermesh-mdns", daemon=True)

    def start(self) -> None:
        """Begin."""
        library = logging.getLogger("zeroconf")
        if library.level == logging.WARNING:  # as it sets itself, and tells each socket's troubles with tracebacks
            library.setLevel(logging.CRITICAL)
        self._thread.start()

    def close(self) -> None:
        """Say goodbye for what was registered, and end. It takes a quarter of a second; a network that hangs is left alone."""
        if not self._stop.done():
            self._stop.set_result(None)
        self._thread.join(_CLOSING_SECONDS)

    def _main(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        stopped = asyncio.wrap_future(self._stop)
        while not stopped.done():
            try:
                await self._serve(stopped)
            except (OSError, RuntimeError, ValueError, Error) as error:
                self._note(f"multicast DNS does not work here ({error or type(error).__name__})")
                await asyncio.wait({stopped}, timeout=self._poll_seconds)

    async def _serve(self, stopped: "asyncio.Future[None]") -> None:
        interfaces = local_interfaces()
        node = AsyncZeroconf(interfaces=_sockets(interfaces))
        try:
            while not stopped.done():
                await self._tend(node, interfaces)  # first, so that new sockets announce nothing old
                await node.async_update_interfaces(_sockets(interfaces))
                self._note(None if any(not each.is_loopback for each in interfaces) else _ALONE)
                await asyncio.wait({stopped}, timeout=self._poll_seconds)
                interfaces = local_interfaces()
        finally:
            await node.async_close()

    def _note(self, problem: str | None) -> None:
        if problem != self._problem:
            self._problem = problem
            self._report(problem)


def _sockets(interfaces: Sequence[Interface]) -> list[str | int]:
    """What to listen on and speak from: each IPv4 address, and each interface that has IPv6, by its number."""
    by_address = [address for each in interfaces for address in each.addresses if ":" not in address]
    with_links = [each for each in interfaces if not each.is_loopback]  # which has no IPv6 multicast
    by_index = [each.index for each in with_links if any(":" in address for address in each.addresses)]
    return [*by_address, *by_index]
