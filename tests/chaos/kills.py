"""Killing a worker at the right moment of a request."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from layermesh.coordinator.remote_route import RemoteRoute
from layermesh.coordinator.worker_client import WorkerClient
from tests.chaos.workers import Worker


class Kill:
    """A kill -9 that is to come: of `worker`, `delay` seconds after `pull`, once."""

    def __init__(self, worker: Worker, delay: float) -> None:
        self._worker = worker
        self._timer = threading.Timer(delay, self._strike)
        self._lock = threading.Lock()
        self._is_pulled = False
        self._delay = delay
        self.at: float | None = None
        self.passed: float | None = None  # when what it was to hit was over

    @property
    def is_late(self) -> bool:
        """Whether it struck when what it was to hit was over."""
        return self.at is not None and self.passed is not None and self.passed < self.at

    def pull(self) -> None:
        with self._lock:
            if self._is_pulled:
                return
            self._is_pulled = True
        if self._delay:
            self._timer.start()
        else:
            self._strike()

    def settle(self) -> None:
        """Wait until it has happened, if it was pulled."""
        if self._is_pulled and self._delay:
            self._timer.join()

    def _strike(self) -> None:
        self._worker.kill()
        self.at = time.monotonic()


@contextmanager
def at_call(number: int, pull: Callable[[], None]) -> Iterator[None]:
    """Pull when the coordinator sends the call with this number, from 0 on."""
    send = RemoteRoute.send

    def sending(route: RemoteRoute, frames: Any, *rest: Any, **more: Any) -> None:
        send(route, frames, *rest, **more)
        if frames[0].step >= number:
            pull()

    with mock.patch.object(RemoteRoute, "send", sending):
        yield


@contextmanager
def at_load(worker: Worker, kill: Kill, num_parts: int = 0) -> Iterator[None]:
    """Pull when a worker is asked to make layers ready, or when it asks for its so-many-th part; `kill` is told when it has."""
    prepare = WorkerClient.prepare

    async def preparing(client: WorkerClient, start: Any, read: Any, progress: Any) -> Any:
        if client.name != worker.name:
            return await prepare(client, start, read, progress)
        asked = []

        def reading(part: str, offset: int) -> Any:
            asked.append(part)
            if len(asked) == num_parts:
                kill.pull()
            return read(part, offset)

        def hearing(told: Any) -> None:
            if num_parts and told.doing.startswith("fetching"):  # it has one from another worker
                kill.pull()
            progress(told)

        if num_parts == 0:
            kill.pull()
        ready = await prepare(client, start, reading, hearing)
        kill.passed = time.monotonic()
        return ready

    with mock.patch.object(WorkerClient, "prepare", preparing):
        yield
