"""Finding the workers that announce themselves."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from itertools import islice
from types import TracebackType
from typing import Final, Self

from zeroconf import Error, ServiceListener, Zeroconf
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from layermesh.shared.announcement import SERVICE_TYPE, Announcement, read_announcement
from layermesh.shared.interfaces import Interface
from layermesh.shared.multicast import POLL_SECONDS, Multicast

MOST_PEERS: Final = 256
_MOST_NAMES: Final = 1024  # that are remembered, whether or not there is a worker behind them
_MOST_QUESTIONS: Final = 8  # under way at a time: each listens to every packet
_PATIENCE_MILLISECONDS: Final = 1500
_MOST_RECORDS: Final = 64  # of a machine
_SRV: Final = 33  # of the DNS
_INTERNET: Final = 1
_AGAIN_SECONDS: Final = 30.0  # after which everybody is asked again, as announcements get lost

Found = tuple[Announcement, ...]


class Browser:
    """Keeps a list of the workers announced on the networks of this machine, while it is entered.

    It is a hint: anybody there can announce anything. What makes no sense is passed over.
    """

    def __init__(self, *, poll_seconds: float = POLL_SECONDS) -> None:
        self._names: dict[str, Announcement | None] = {}
        self._mentioned: dict[str, None] = {}
        self._learning: asyncio.Task[None] | None = None
        self._questions: dict[str, asyncio.Task[None]] = {}
        self._interfaces: tuple[Interface, ...] | None = None
        self._node: AsyncZeroconf | None = None
        self._asked_at = 0.0
        self._listener = _Listener(self._look, self._forget)
        self._changed = threading.Condition()
        self._found: Found = ()
        self._problem: str | None = None
        self._multicast = Multicast(self._tend, self._report, poll_seconds)

    def __enter__(self) -> Self:
        self._multicast.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._multicast.close()

    @property
    def problem(self) -> str | None:
        """Why nobody can be found, and what to do; None as far as is known."""
        with self._changed:
            return self._problem

    def found(self) -> Found:
        """Return the workers that are announced now, at most `MOST_PEERS`; the newest of their addresses first."""
        with self._changed:
            return self._found

    def wait(self, seconds: float, enough: Callable[[Found], bool]) -> Found:
        """Return what is found once that is `enough`, and after `seconds` or when nobody can be found in any case."""
        with self._changed:
            self._changed.wait_for(lambda: self._problem is not None or enough(self._found), seconds)
            return self._found

    async def _tend(self, node: AsyncZeroconf, interfaces: tuple[Interface, ...]) -> None:
        now = time.monotonic()
        if (node, interfaces) != (self._node, self._interfaces) or now - self._asked_at > _AGAIN_SECONDS:
            self._node, self._interfaces, self._asked_at = node, interfaces, now
            await node.async_add_service_listener(SERVICE_TYPE, self._listener)
        for name in tuple(self._names):
            self._look(node.zeroconf, name)

    def _look(self, zeroconf: Zeroconf, name: str) -> None:
        """See soon what is known of `name`; once, however often it is mentioned meanwhile."""
        self._mentioned[name] = None
        if self._learning is None or self._learning.done():
            self._learning = asyncio.ensure_future(self._learn_all(zeroconf))

    async def _learn_all(self, zeroconf: Zeroconf) -> None:
        while self._mentioned:
            name = next(iter(self._mentioned))
            del self._mentioned[name]
            self._learn(zeroconf, name)
            await asyncio.sleep(0)  # packets come first, or a flood of odd ones would push out the others

    def _learn(self, zeroconf: Zeroconf, name: str) -> None:
        """Take what is known of `name`, and ask where that has expired or is not there yet."""
        before, is_new = self._names.get(name), name not in self._names
        try:
            _check_crowd(zeroconf, name)
            info = AsyncServiceInfo(SERVICE_TYPE, name)
            if info.load_from_cache(zeroconf):
                self._keep(name, _read(name, info))
            elif (is_new or before is not None) and self._may_ask(name) and self._keep(name, before):
                self._questions[name] = asyncio.ensure_future(self._ask(zeroconf, name))
        except (ValueError, Error):
            self._keep(name, None)

    def _keep(self, name: str, announcement: Announcement | None) -> bool:
        """Remember what `name` announces, or that it announces nothing; False where there is no room to."""
        if name in self._names and self._names[name] == announcement:
            return True
        if name not in self._names and len(self._names) >= _MOST_NAMES:
            empty = next((each for each, known in self._names.items() if known is None), None)
            if empty is None:
                return False
            del self._names[empty]
        self._names[name] = announcement
        self._publish()
        return True

    def _forget(self, name: str) -> None:
        self._names.pop(name, None)
        self._mentioned.pop(name, None)
        self._publish()

    def _may_ask(self, name: str) -> bool:
        return name not in self._questions and len(self._questions) < _MOST_QUESTIONS

    async def _ask(self, zeroconf: Zeroconf, name: str) -> None:
        announcement = None
        try:
            info = AsyncServiceInfo(SERVICE_TYPE, name)
            if await info.async_request(zeroconf, _PATIENCE_MILLISECONDS):
                announcement = _read(name, info)
        except (ValueError, Error):
            pass
        finally:
            del self._questions[name]
        if name in self._names:
            self._keep(name, announcement)

    def _publish(self) -> None:
        found = tuple(islice((each for each in self._names.values() if each is not None), MOST_PEERS))
        with self._changed:
            if found != self._found:
                self._found = found
                self._changed.notify_all()

    def _report(self, problem: str | None) -> None:
        with self._changed:
            self._problem = problem and f"workers cannot be looked for: {problem}. Name them with --worker HOST:PORT."
            self._changed.notify_all()


class _Listener(ServiceListener):
    """Calls `look` for names that are new or have changed, and `forget` for those that said goodbye or expired."""

    def __init__(self, look: Callable[[Zeroconf, str], None], forget: Callable[[str], None]) -> None:
        self._look = look
        self._forget = forget

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:  # noqa: ARG002
        self._look(zc, name)

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:  # noqa: ARG002
        self._look(zc, name)

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:  # noqa: ARG002
        self._forget(name)


def _check_crowd(zeroconf: Zeroconf, name: str) -> None:
    """Raise ValueError where so many addresses are known of the machine behind `name` that going through them takes long."""
    server = getattr(zeroconf.cache.get_by_details(name, _SRV, _INTERNET), "server", None)
    if isinstance(server, str) and len(zeroconf.cache.entries_with_name(server)) > _MOST_RECORDS:
        raise ValueError(f"{name!r} has more than {_MOST_RECORDS} addresses")


def _read(name: str, info: AsyncServiceInfo) -> Announcement:
    addresses = [_with_interface(address) for address in info.parsed_scoped_addresses()]
    return read_announcement(name, info.properties, info.port, addresses)


def _with_interface(address: str) -> str:
    """Name the interface that is a number in "fe80::1%2"."""
    plain, separator, index = address.partition("%")
    try:
        return f"{plain}%{socket.if_indextoname(int(index))}" if separator else plain
    except (OSError, ValueError):  # it is gone
        return plain
