"""Telling the networks of this machine that invited workers can join here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from zeroconf import ServiceInfo
from zeroconf.asyncio import AsyncZeroconf

from layermesh.shared.announcement import MOST_ADDRESSES, is_reachable
from layermesh.shared.interfaces import Interface, machine_addresses
from layermesh.shared.multicast import Multicast
from layermesh.shared.security.enrolment_wire import JOIN_TYPE


@dataclass(frozen=True, slots=True)
class JoiningPlace:
    """Where the mesh whose authority has this hash lets workers in, and the node that does."""

    authority: bytes
    node: str
    port: int

    def service(self, addresses: Sequence[str]) -> ServiceInfo:
        """Return it as it is announced, with those of `addresses` that others may reach."""
        reachable = tuple(filter(is_reachable, addresses))[:MOST_ADDRESSES]
        return ServiceInfo(
            JOIN_TYPE,
            f"{self.node}-{self.port}.{JOIN_TYPE}",
            port=self.port,
            properties={b"ca": self.authority.hex().encode()},
            server=f"layermesh-join-{self.node}.local.",
            parsed_addresses=[address.partition("%")[0] for address in reachable],
        )


class JoiningAnnouncer:
    """Announces `place` while it is entered; `problem` is told why nobody can find it, or None once they can."""

    def __init__(self, place: JoiningPlace, problem: Callable[[str | None], None]) -> None:
        self._place = place
        self._node: AsyncZeroconf | None = None
        self._addresses: tuple[str, ...] = ()
        self._multicast = Multicast(self._tend, problem)

    def __enter__(self) -> Self:
        self._multicast.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._multicast.close()

    async def _tend(self, node: AsyncZeroconf, _: tuple[Interface, ...]) -> None:
        addresses = machine_addresses()
        if node is not self._node:
            await node.async_register_service(self._place.service(addresses), cooperating_responders=True)
        elif addresses != self._addresses:
            await node.async_update_service(self._place.service(addresses))
        self._node, self._addresses = node, addresses
