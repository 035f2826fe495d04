"""Workers in threads of this process, behind real sockets: a mesh without the seconds that processes take to start."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from layermesh.shared.machine_profile import MachineProfile
from layermesh.worker.membership import Membership
from layermesh.worker.opening import StageBudget
from layermesh.worker.profile_cache import ProfileCache
from layermesh.worker.server import Settings, WorkerServer
from layermesh.worker.store import Store

PLENTY = 1 << 30
PROFILE = MachineProfile(PLENTY, 0, 0.0, 1e9, {"float32": 1e10, "bfloat16": 1e10, "int4": 1e10}, 1e11, "test")


class LoopbackWorker:
    """One worker: `address` is where it listens while it runs. It can be stopped and started again."""

    def __init__(self, loop: asyncio.AbstractEventLoop, folder: Path, number: int, budget_bytes: int = PLENTY) -> None:
        self.name = f"w{number}"
        self.id = f"{number:x}".ljust(32, "0")
        self.folder = folder
        self.budget_bytes = budget_bytes
        self.port = 0
        self.membership: Membership | None = None  # of a mesh, over which it speaks TLS, on the loopback interface as anywhere
        self.server: WorkerServer | None = None
        self._ending: Future[None] | None = None
        self._loop = loop

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def store(self) -> Store:
        return Store(self.folder)

    def start(self, *, limit_bytes: int | None = None) -> None:
        budget = StageBudget(self.budget_bytes)
        settings = Settings(
            self.id, self.name, torch.device("cpu"), budget, "127.0.0.1", self.port, announce=False, membership=self.membership
        )
        runs = ProfileCache(self.folder.with_suffix(".profile"))
        self.server = WorkerServer(settings, PROFILE, Store(self.folder, limit_bytes), runs)
        self._wait(self.server.__aenter__())
        self.port = self.server.port

    def stop(self, drain_seconds: float = 0.0) -> None:
        """Break off all connections at once, as if it were switched off; or after some seconds for others to take over."""
        server, self.server = self.server, None
        if server is not None:
            server.drain_seconds = drain_seconds
            self._ending = asyncio.run_coroutine_threadsafe(server.__aexit__(None, None, None), self._loop)
        if self._ending is not None:  # perhaps in another thread
            self._ending.result(timeout=60)

    def _wait(self, coroutine: Coroutine[Any, Any, object]) -> None:
        future: Future[object] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        future.result(timeout=60)


class Loopback:
    """Starts workers on the loopback interface, and ends them all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.workers: list[LoopbackWorker] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for worker in self.workers:
            worker.stop()
        asyncio.run_coroutine_threadsafe(_end_tasks(), self._loop).result(timeout=60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def add(
        self,
        num_workers: int = 1,
        budget_bytes: int = PLENTY,
        limit_bytes: int | None = None,
        pair: Callable[[LoopbackWorker], Membership] | None = None,
    ) -> list[LoopbackWorker]:
        """Start more workers and return them; `pair` gives each its place in a mesh."""
        added = []
        for _ in range(num_workers):
            number = len(self.workers)
            worker = LoopbackWorker(self._loop, self._folder / f"store-{number}", number, budget_bytes)
            worker.membership = None if pair is None else pair(worker)
            worker.start(limit_bytes=limit_bytes)
            self.workers.append(worker)
            added.append(worker)
        return added


async def _end_tasks() -> None:
    """End what gRPC still has under way, as the end of a process does."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=10)
