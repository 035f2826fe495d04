"""Finding the machine that an invitation comes from."""

import asyncio
import threading
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from zeroconf import Error, ServiceListener, Zeroconf
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from layermesh.shared.addresses import format_address
from layermesh.shared.announcement import is_reachable
from layermesh.shared.interfaces import Interface
from layermesh.shared.multicast import Multicast
from layermesh.shared.security.enrolment_wire import JOIN_TYPE

_MOST_NAMES: Final = 256
_PATIENCE_MILLISECONDS: Final = 1500
_POLL_SECONDS: Final = 1.0


class CoordinatorFinder:
    """Looks, while it is entered, for those who say they are the mesh whose authority has this hash. Anybody can say so."""

    def __init__(self, authority: bytes) -> None:
        self.problem: str | None = None
        self._hash = authority.hex().encode()
        self._found: dict[str, None] = {}
        self._names: set[str] = set()
        self._questions: set[asyncio.Task[None]] = set()
        self._changed = threading.Condition()
        self._node: AsyncZeroconf | None = None
        self._multicast = Multicast(self._tend, self._report, _POLL_SECONDS)

    def __enter__(self) -> Self:
        self._multicast.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._multicast.close()

    def wait(self, seconds: float, known: int = 0) -> list[str]:
        """Return addresses (HOST:PORT) as soon as there are more than `known`, and after `seconds` in any case."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._found) > known, seconds)
            return list(self._found)

    async def _tend(self, node: AsyncZeroconf, interfaces: tuple[Interface, ...]) -> None:
        del interfaces
        if node is not self._node:
            self._node = node
            await node.async_add_service_listener(JOIN_TYPE, _Listener(self))

    def look(self, zeroconf: Zeroconf, name: str) -> None:
        """See what is announced by `name`."""
        if name not in self._names and len(self._names) < _MOST_NAMES:
            self._names.add(name)
            question = asyncio.ensure_future(self._ask(zeroconf, name))
            self._questions.add(question)
            question.add_done_callback(self._questions.discard)

    async def _ask(self, zeroconf: Zeroconf, name: str) -> None:
        with suppress(ValueError, Error):
            info = AsyncServiceInfo(JOIN_TYPE, name)
            known = info.load_from_cache(zeroconf) or await info.async_request(zeroconf, _PATIENCE_MILLISECONDS)
            if known and info.port and info.properties.get(b"ca") == self._hash:
                self._add([format_address(each, info.port) for each in info.parsed_addresses() if is_reachable(each)])
        self._names.discard(name)  # it may be asked again, should it change

    def _add(self, addresses: list[str]) -> None:
        with self._changed:
            self._found.update(dict.fromkeys(addresses[:_MOST_NAMES]))
            self._changed.notify_all()

    def _report(self, problem: str | None) -> None:
        self.problem = problem


class _Listener(ServiceListener):
    def __init__(self, finder: CoordinatorFinder) -> None:
        self._finder = finder

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:  # noqa: ARG002
        self._finder.look(zc, name)

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:  # noqa: ARG002
        self._finder.look(zc, name)

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        pass
