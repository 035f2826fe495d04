"""Connections to workers: encrypted and to a certain node of the mesh, except within this machine. All are opened here."""

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Final
from weakref import WeakSet

import grpc
import grpc.aio

from layermesh.shared.addresses import is_loopback, parse_address, pin, split_pin
from layermesh.shared.errors import AuthenticationError, AwayError, WorkerLostError
from layermesh.shared.grpc_options import CHANNEL_OPTIONS
from layermesh.shared.security.authority import utc_now
from layermesh.shared.security.credentials import Credentials
from layermesh.shared.security.greeting import greet
from layermesh.shared.security.judging import judge
from layermesh.shared.security.nodes import Member, NodeId, host_name, is_node_id

REMOTE_SECONDS: Final = 3.0
LOCAL_SECONDS: Final = 1.0


def _nobody() -> frozenset[NodeId]:
    return frozenset()


class Channels:
    """Opens connections for whoever has `credentials`, which lie at `path`; to nobody who was `removed`.

    Without credentials it opens those within this machine only. For the event loop's thread.
    """

    def __init__(
        self,
        credentials: Callable[[], Credentials | None] = lambda: None,
        path: Path | None = None,
        removed: Callable[[], AbstractSet[NodeId]] = _nobody,
    ) -> None:
        self._credentials = credentials
        self._path = path
        self._removed = removed
        self._open: dict[str, WeakSet[grpc.aio.Channel]] = {}

    async def meet(self, address: str, who: str) -> Member | None:
        """Return which worker is at `address` (HOST:PORT); None for one that is on this machine and not encrypted.

        Raises AuthenticationError, with the reason, for one that is not of our mesh, WorkerLostError where nobody answers.
        """
        host, port = parse_address(address)
        is_near, own = is_loopback(address), self._credentials()
        try:
            greeting = await greet(host, port, self._path if own else None, LOCAL_SECONDS if is_near else REMOTE_SECONDS)
        except TimeoutError as error:
            raise WorkerLostError(f"{who} did not answer in time. Is it overloaded, or asleep?") from error
        except OSError as error:
            raise AwayError(
                f"{who} does not answer ({error.strerror or type(error).__name__}). Is it running, and is the address right? "
                "`layermesh status` shows who is there.",
                crashed=True,
            ) from error
        if is_near and greeting.certificate is None:
            return None
        return judge(who, greeting, own, self._removed(), utc_now())

    def open(self, address: str) -> grpc.aio.Channel:
        """Return a connection to "NODE@HOST:PORT", or to "HOST:PORT" within this machine.

        Raises AuthenticationError for anything else, and for a node that was removed; UsageError for what is no address.
        """
        node, place = split_pin(address)
        parse_address(place)
        if node is None:
            if not is_loopback(place):
                raise AuthenticationError(f"{place[:80]} is not on this machine, and nobody said which node of the mesh it is.")
            return grpc.aio.insecure_channel(place, CHANNEL_OPTIONS)
        own = self._credentials()
        if not is_node_id(node) or own is None or node in self._removed():
            raise AuthenticationError(f"no node {node[:40]!r} of a mesh of this machine is at {place[:80]}. Pair it again.")
        secrets = grpc.ssl_channel_credentials(own.authority_pem, own.key_pem, own.certificate_pem)
        options = [*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", host_name(NodeId(node)))]
        channel = grpc.aio.secure_channel(place, secrets, options)
        self._open.setdefault(node, WeakSet()).add(channel)
        return channel

    async def cut(self, nodes: AbstractSet[NodeId]) -> None:
        """Break off what is open to `nodes`."""
        for node in nodes & self._open.keys():
            for channel in list(self._open.pop(node)):
                await channel.close()

    def is_cut(self, address: str) -> bool:
        """Whether it leads to a node that was removed."""
        return split_pin(address)[0] in self._removed()


def pinned(address: str, member: Member | None) -> str:
    """Return the address that leads to `member` alone; None is a worker that is not encrypted, on this machine."""
    return address if member is None else pin(address, member.node)
