"""The mesh as its coordinator keeps it, and what its workers should know of it."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding

from layermesh.coordinator.worker_client import WorkerClient
from layermesh.shared.channels import Channels
from layermesh.shared.errors import LayermeshError
from layermesh.shared.security.authority import utc_now
from layermesh.shared.security.keys import read_request
from layermesh.shared.security.mesh_home import SEEN_SECONDS, MeshHome, is_due
from layermesh.shared.security.nodes import NodeId

POLL_SECONDS: Final = 0.3
_LOG: Final = logging.getLogger(__name__)


class Members:
    """Opens `channels` to the nodes of `mesh`, renews their certificates, and tells them who was removed."""

    def __init__(self, mesh: MeshHome) -> None:
        self.channels = Channels(mesh.credentials, mesh.credentials_path, mesh.removed)
        self._mesh = mesh
        self._told: dict[NodeId, int] = {}
        self._renewed: set[NodeId] = set()
        self._seen: dict[NodeId, float] = {}

    async def tend(self, client: WorkerClient) -> None:
        """Do what is due with a worker that has just answered; what fails is tried again the next time."""
        if client.member is None:
            return
        try:
            await self._tell(client)
            await self._renew(client)
            await self._note_seen(client)
        except LayermeshError as error:
            _LOG.debug("%s: %s", client.who, error)

    def has_told(self, node: str) -> bool:
        """Whether a worker has said that it knows who was removed, as of the newest list."""
        return self._told.get(NodeId(node), 0) >= self._mesh.signed_removals()[0]

    async def watch(self, clients: Callable[[], Iterable[WorkerClient]]) -> None:
        """Break off what is open to nodes as soon as they are removed, and tell the others; until it is cancelled."""
        known: frozenset[NodeId] = frozenset()
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                removed = self._mesh.removed()
            except LayermeshError as error:
                _LOG.warning("Who was removed from the mesh cannot be read: %s", error)
                continue
            if removed != known:
                known = removed
                every = list(clients())
                await asyncio.gather(*(client.cut_off() for client in every if client.node in removed))
                await asyncio.gather(*(self.tend(client) for client in every if client.node not in removed))

    async def _tell(self, client: WorkerClient) -> None:
        assert client.node is not None
        number, signed = self._mesh.signed_removals()
        if signed is not None and self._told.get(client.node, 0) < number:
            self._told[client.node] = await client.tell_removed(signed)

    async def _renew(self, client: WorkerClient) -> None:
        member = client.member
        assert member is not None
        if member.node in self._renewed or not is_due(member, utc_now()):
            return

        def issue(request: bytes) -> bytes:
            return self._mesh.renew(member.node, read_request(request)).public_bytes(Encoding.DER)

        self._renewed.add(member.node)
        await client.renew(issue)

    async def _note_seen(self, client: WorkerClient) -> None:
        member, now = client.member, time.monotonic()
        assert member is not None
        if now - self._seen.get(member.node, -SEEN_SECONDS) >= SEEN_SECONDS:
            self._seen[member.node] = now
            await asyncio.to_thread(self._mesh.note_seen, member, client.name, client.address)
