"""Telling the networks of this machine that a worker is here."""

import logging
from dataclasses import replace
from types import TracebackType
from typing import Final, Self

from zeroconf import ServiceInfo
from zeroconf.asyncio import AsyncZeroconf

from layermesh.shared.announcement import MOST_ADDRESSES, SERVICE_TYPE, Announcement, is_reachable
from layermesh.shared.interfaces import Interface, machine_addresses
from layermesh.shared.multicast import POLL_SECONDS, Multicast

_LOG: Final = logging.getLogger(__name__)


class Announcer:
    """Announces a worker while it is entered, and says goodbye.

    Where `announcement` names no addresses they are those of the machine, followed as they change. Its instance's name is its
    own, so nobody is asked first whether it is taken, which would take a second and a half. A machine on which multicast does
    not work gets one warning, and is announced once it does.
    """

    def __init__(self, announcement: Announcement, *, poll_seconds: float = POLL_SECONDS) -> None:
        self._given = announcement
        self._announced: Announcement | None = None
        self._again = False
        self._node: AsyncZeroconf | None = None
        self._multicast = Multicast(self._tend, self._report, poll_seconds)

    def __enter__(self) -> Self:
        self._multicast.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._multicast.close()

    async def _tend(self, node: AsyncZeroconf, _: tuple[Interface, ...]) -> None:
        addresses = self._given.addresses or tuple(filter(is_reachable, machine_addresses()))[:MOST_ADDRESSES]
        current = replace(self._given, addresses=addresses)
        if node is not self._node:
            await node.async_register_service(_describe(current), cooperating_responders=True)
        elif current != self._announced or self._again:
            await node.async_update_service(_describe(current))
        # Packets get lost in bursts, and receivers drop an old address only if they last heard of it more than a second ago.
        self._again = self._announced != current
        self._node, self._announced = node, current

    def _report(self, problem: str | None) -> None:
        if problem is not None:
            _LOG.warning("Nobody finds this worker by itself: %s. Name it with --worker HOST:%d.", problem, self._given.port)


def _describe(announcement: Announcement) -> ServiceInfo:
    return ServiceInfo(
        SERVICE_TYPE,
        announcement.instance,
        port=announcement.port,
        properties=dict(announcement.properties),
        server=announcement.server,
        parsed_addresses=[address.partition("%")[0] for address in announcement.addresses],
    )
