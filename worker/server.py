"""A worker that is up: its gRPC server, its announcement, and what it looks after meanwhile."""

import asyncio
import errno
import os
import socket
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import grpc.aio
import torch
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_service
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from layermesh.protos.mesh_pb2_grpc import add_WorkerServiceServicer_to_server
from layermesh.shared.addresses import DEFAULT_PORT, format_address
from layermesh.shared.announcement import Announcement
from layermesh.shared.errors import UsageError
from layermesh.shared.grpc_options import SERVER_OPTIONS
from layermesh.shared.interfaces import addresses_of, local_interfaces
from layermesh.shared.machine_profile import MachineProfile
from layermesh.shared.protocol import PROTOCOL_VERSION
from layermesh.worker.announcing import Announcer
from layermesh.worker.host import Host, LiveStage
from layermesh.worker.kept import KEPT_BYTES
from layermesh.worker.limits import MAX_CALLS
from layermesh.worker.opening import StageBudget
from layermesh.worker.parse_guard import ParseGuard
from layermesh.worker.profile_cache import ProfileCache
from layermesh.worker.routes import Routes
from layermesh.worker.service import Identity, WorkerService
from layermesh.worker.store import Store

ANY_HOST = "::"  # with IPv4
IDLE_CHECK_SECONDS = 10.0
DRAIN_SECONDS = 4.0  # in which others can take over what runs here


@dataclass(frozen=True, slots=True)
class Settings:
    """What a worker is told by its user; a `port` of None is the usual one, or any that is free.

    `kept_bytes` of host memory are set aside, beside the budget, for what was made and may be asked for again.
    """

    worker_id: str
    name: str
    device: torch.device
    budget: StageBudget
    host: str | None = None
    port: int | None = None
    announce: bool = True
    kept_bytes: int = KEPT_BYTES


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
        routes = Routes(settings.name, self._host)
        self._open.push_async_callback(routes.close)
        server = grpc.aio.server(interceptors=[ParseGuard()], options=SERVER_OPTIONS, maximum_concurrent_rpcs=MAX_CALLS)
        identity = Identity(settings.worker_id, settings.name, str(settings.device), self._addresses)
        service = WorkerService(identity, self._profile, self._host, self._store, routes, self._slowdowns)
        add_WorkerServiceServicer_to_server(service, server)
        health = health_service.HealthServicer()
        add_HealthServicer_to_server(health, server)
        await health.set("", health_pb2.HealthCheckResponse.SERVING)
        self.port = _bind(server, settings.host, settings.port)
        await server.start()
        self._open.push_async_callback(server.stop, 0)
        self._open.push_async_callback(self._say_goodbye, routes)
        tidying = asyncio.create_task(self._tidy())
        self._open.callback(tidying.cancel)
        if settings.announce:
            announcement = Announcement(settings.worker_id, settings.name, PROTOCOL_VERSION, self.port)
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
        return [format_address(address, self.port) for address in addresses_of(local_interfaces())]


def _bind(server: grpc.aio.Server, host: str | None, port: int | None) -> int:
    """Listen at a port and return it. Raises UsageError for one that cannot be had."""
    hosts = (host,) if host is not None else (ANY_HOST, "0.0.0.0")  # workers are for the other machines  # noqa: S104  # nosec B104
    ports = (port,) if port is not None else (DEFAULT_PORT, 0)
    problem = ""
    for number in ports:
        for name in hosts:
            try:
                if number == 0 or not _is_taken(name, number):
                    return server.add_insecure_port(format_address(name, number))
                problem = "another program uses it"
            except RuntimeError as error:
                problem = str(error)
    where = f"port {port}" if host is None else format_address(host, port or DEFAULT_PORT)
    raise UsageError(f"cannot listen at {where}: {problem}. Stop what uses it, or say another --port (0 for any) or --host.")


def _is_taken(host: str, port: int) -> bool:
    """Whether somebody listens there: gRPC would listen beside them on systems that allow it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as probe:
        if os.name == "posix":  # ends of old connections do not count
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False
