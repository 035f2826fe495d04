"""A worker that is up: its gRPC server, its announcement, and what it looks after meanwhile."""

import asyncio
from collections.abc import Set as AbstractSet
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import grpc.aio
import torch
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_service
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from layermesh.protos.mesh_pb2_grpc import add_MembershipServiceServicer_to_server, add_WorkerServiceServicer_to_server
from layermesh.shared.addresses import format_address
from layermesh.shared.announcement import Announcement
from layermesh.shared.channels import Channels
from layermesh.shared.grpc_options import SERVER_OPTIONS
from layermesh.shared.interfaces import machine_addresses
from layermesh.shared.machine_profile import MachineProfile
from layermesh.shared.protocol import PROTOCOL_VERSION
from layermesh.shared.security.nodes import NodeId
from layermesh.worker.announcing import Announcer
from layermesh.worker.guard import Guard
from layermesh.worker.host import Host, LiveStage
from layermesh.worker.kept import KEPT_BYTES
from layermesh.worker.limits import MAX_CALLS
from layermesh.worker.listening import listen
from layermesh.worker.membership import Membership
from layermesh.worker.membership_service import MembershipService
from layermesh.worker.opening import StageBudget
from layermesh.worker.parse_guard import ParseGuard
from layermesh.worker.profile_cache import ProfileCache
from layermesh.worker.routes import Routes
from layermesh.worker.service import Identity, WorkerService
from layermesh.worker.store import Store

IDLE_CHECK_SECONDS = 10.0
DRAIN_SECONDS = 4.0  # in which others can take over what runs here


@dataclass(frozen=True, slots=True)
class Settings:
    """What a worker is told by its user; a `port` of None is the usual one, or any that is free.

    `kept_bytes` of host memory are set aside, beside the budget, for what was made and may be asked for again. Without a
    `membership` that has credentials it listens within this machine only, and nothing is encrypted.
    """

    worker_id: str
    name: str
    device: torch.device
    budget: StageBudget
    host: str | None = None
    port: int | None = None
    announce: bool = True
    kept_bytes: int = KEPT_BYTES
    membership: Membership | None = None

    @property
    def mesh(self) -> str:
        """What tells the mesh that it belongs to from others; empty where it belongs to none."""
        credentials = None if self.membership is None else self.membership.credentials()
        return "" if credentials is None else credentials.mesh


class WorkerServer:
    """Serves from `async with` on; `port` is where. How long real runs take is noted in `runs`, if given.

    When it stops, coordinators have `drain_seconds` to go on without it; with 0 they are not even told.
    """

    def __init__(self, settings: Settings, profile: MachineProfile, store: Store, runs: ProfileCache | None = None) -> None:
        self.port = 0
        self.drain_seconds = DRAIN_SECONDS
        self._settings = settings
        self._profile = profile
        self._store = store
        self._runs = runs
        note_run = (lambda *_: None) if runs is None else runs.note_run
        self._host = Host(settings.device, settings.budget, note_run, settings.kept_bytes)
        self._guard: Guard | None = None
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._open.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._open.aclose()

    @property
    def stages(self) -> tuple[LiveStage, ...]:
        """What runs here."""
        return self._host.stages

    async def _start(self) -> None:
        settings = self._settings
        self._open.push_async_callback(self._host.close)
        membership = settings.membership if settings.mesh else None
        channels = Channels() if membership is None else Channels(membership.credentials, membership.path, membership.removed)
        routes = Routes(settings.name, self._host, channels)
        self._open.push_async_callback(routes.close)
        self._guard = None if membership is None else Guard(membership.removed)
        interceptors = [ParseGuard()] if self._guard is None else [self._guard, ParseGuard()]
        server = grpc.aio.server(interceptors=interceptors, options=SERVER_OPTIONS, maximum_concurrent_rpcs=MAX_CALLS)
        if membership is not None and self._guard is not None:
            add_MembershipServiceServicer_to_server(MembershipService(membership, _Cutting(self._guard, channels).cut), server)
        identity = Identity(settings.worker_id, settings.name, str(settings.device), self._addresses)
        service = WorkerService(identity, self._profile, self._host, self._store, routes, self._slowdowns, channels)
        add_WorkerServiceServicer_to_server(service, server)
        health = health_service.HealthServicer()
        add_HealthServicer_to_server(health, server)
        await health.set("", health_pb2.HealthCheckResponse.SERVING)
        self.port = listen(
            server, settings.host, settings.port, lambda: None if membership is None else membership.credentials()
        )
        await server.start()
        self._open.push_async_callback(server.stop, 0)
        self._open.push_async_callback(self._say_goodbye, routes)
        tidying = asyncio.create_task(self._tidy())
        self._open.callback(tidying.cancel)
        if settings.announce:
            announcement = Announcement(settings.worker_id, settings.name, PROTOCOL_VERSION, self.port, mesh=settings.mesh)
            self._open.enter_context(Announcer(announcement))

    async def _say_goodbye(self, routes: Routes) -> None:
        if self.drain_seconds:
            await routes.say_goodbye(self.drain_seconds)

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(IDLE_CHECK_SECONDS)
            await self._host.close_idle()

    def _slowdowns(self) -> dict[str, float]:
        return {} if self._runs is None else self._runs.slowdowns(self._profile)

    def _addresses(self) -> list[str]:
        """Where other machines reach it: nowhere, unless it is paired."""
        return [format_address(address, self.port) for address in machine_addresses() if self._settings.mesh]


@dataclass(frozen=True, slots=True)
class _Cutting:
    """Both ways in which nodes are connected to a worker."""

    guard: Guard
    channels: Channels

    async def cut(self, nodes: AbstractSet[NodeId]) -> None:
        """Break off what they call here, and what is called there."""
        self.guard.cut(nodes)
        await self.channels.cut(nodes)
