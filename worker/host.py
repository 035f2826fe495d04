"""The stages that are alive on this machine, and the memory they share."""

import asyncio
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from layermesh.shared.apart import start_apart
from layermesh.shared.errors import BudgetError, BusyError, MeshError
from layermesh.shared.footprint import SequenceSize, planned_sizes
from layermesh.shared.frames import SessionId
from layermesh.shared.prediction import predict
from layermesh.shared.residency import Residency
from layermesh.shared.stage_key import StageKey
from layermesh.worker.finishing import to_its_end
from layermesh.worker.kept import KEPT_BYTES, Allowance
from layermesh.worker.measuring_turn import at_work, measuring_turn
from layermesh.worker.opening import StageBudget
from layermesh.worker.profiling import measure_profile
from layermesh.worker.runner import StageRunner
from layermesh.worker.stage import Stage

T = TypeVar("T")
OpenStage = Callable[[StageBudget], Stage]
NoteRun = Callable[[str, str, float], None]

GRACE_SECONDS = 10.0  # between a stage's getting ready and the route that uses it
IDLE_SECONDS = 300.0  # after which memory goes back to the rest of the machine
PLANNING = SessionId("plan")


@dataclass(slots=True)
class LiveStage:
    """A stage with the routes that use it; `seconds_per_token` is what was measured when it was opened.

    `files` are let go of when it is closed.
    """

    key: StageKey
    model: str
    runner: StageRunner
    residency: Residency
    seconds_per_token: float
    used: float
    is_awaited: bool = True  # somebody had it made ready, and has not come yet
    routes: set[str] = field(default_factory=set)
    sessions: dict[SessionId, str] = field(default_factory=dict)  # and the route each came on
    files: ExitStack = field(default_factory=ExitStack)
    weight_form: str = ""
    most_bytes: int | None = None  # of memory, where somebody said so

    @property
    def in_use(self) -> bool:
        """Whether somebody runs on it, or is about to."""
        return bool(self.routes) or (self.is_awaited and time.monotonic() - self.used < GRACE_SECONDS)

    @property
    def seconds_per_byte(self) -> float | None:
        """What recent tokens took for each byte of weights; None before there were any, and where a disk had a part in it."""
        if not self.residency.stays_whole or not self.runner.seconds_per_token:
            return None
        return self.runner.seconds_per_token / max(self.residency.resident_bytes, 1)


class Host:
    """Opens stages within `budget`, and closes those that nobody uses when another needs their memory.

    `note_run` is told what a model's weights, by fingerprint and form, took per byte whenever a session ends. Beside the
    budget, `kept_bytes` of host memory are for what was made of frames.
    """

    def __init__(
        self,
        device: torch.device,
        budget: StageBudget,
        note_run: NoteRun = lambda *_: None,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        self.device = device
        self._note_run = note_run
        self._allowance = Allowance(kept_bytes)
        self._budget = budget
        self._stages: dict[StageKey, LiveStage] = {}
        self._lock = asyncio.Lock()

    @property
    def stages(self) -> tuple[LiveStage, ...]:
        """Those that are alive."""
        return tuple(self._stages.values())

    def find(self, key: StageKey) -> LiveStage | None:
        """Return the stage by that key if it is alive."""
        return self._stages.get(key)

    def get(self, key: StageKey) -> LiveStage:
        """Return the stage by that key; raises BusyError where there is none."""
        live = self._stages.get(key)
        if live is None:
            raise BusyError(f"layers {key.span} are not ready here any more; they had to make room.")
        return live

    async def open(
        self,
        key: StageKey,
        model: str,
        open_stage: OpenStage,
        files: AbstractContextManager[object] | None = None,
        most_bytes: int | None = None,
    ) -> LiveStage:
        """Return the stage by that key, opening it unless it is alive; then `files` is held as long as it lives.

        It takes no more than `most_bytes` of memory, if given. Raises BudgetError where there is no room for it, even without
        those that nobody uses.
        """
        async with self._lock:
            if (live := self._stages.get(key)) is None:
                live = await to_its_end(self._open(key, model, open_stage, files or nullcontext(), most_bytes))
            live.used, live.is_awaited = time.monotonic(), True
            return live

    async def reserve(
        self, live: LiveStage, session: SessionId, route: str, size: SequenceSize, num_steps: int = 0
    ) -> tuple[Residency, bool]:
        """Make room for a session that came on `route`, and return whether it goes on after `num_steps` that it had here.

        Otherwise it begins anew. Raises BudgetError, and MeshError for a route that is not here.
        """
        async with self._lock:  # nobody else may take what is free meanwhile
            if route not in live.routes:
                raise MeshError("a session comes on a route, and this one does not lead here, or not any more.")
            if live.sessions.get(session, route) != route:
                raise MeshError(f"session {session} belongs to another route.")
            if session in live.sessions:
                if num_steps > 0 and await _result(live.runner.goes_on(session, num_steps)):
                    return live.residency, True
                await self.release(live, session)
            live.sessions[session] = route
            budget_bytes = _least(self._free_bytes() + live.residency.total_bytes, live.most_bytes)

            def job(stage: Stage) -> Residency:
                stage.allow(budget_bytes)
                live.residency = _reserve(stage, session, size)
                return live.residency

            try:
                return await to_its_end(self._call(live, job)), False
            except BaseException:
                live.sessions.pop(session, None)
                live.runner.release(session)  # it may have come to it all the same
                raise

    async def release(self, live: LiveStage, session: SessionId) -> None:
        """Forget a session; a stage that is closed has forgotten it."""
        known = live.sessions.pop(session, None)
        live.used = time.monotonic()
        with suppress(BusyError):
            await to_its_end(_result(live.runner.release(session)))
        if known is not None and (seconds_per_byte := live.seconds_per_byte) is not None:
            await asyncio.to_thread(self._note_run, live.key.fingerprint, live.weight_form, seconds_per_byte)

    def enter(self, live: LiveStage, route: str) -> None:
        """Note that `route` uses a stage."""
        live.routes.add(route)
        live.is_awaited = False

    async def leave(self, live: LiveStage, route: str) -> None:
        """Note that `route` is gone, and forget its sessions."""
        live.routes.discard(route)
        live.used = time.monotonic()
        for session in [session for session, of in live.sessions.items() if of == route]:
            await self.release(live, session)

    async def close_larger(self, key: StageKey, most_bytes: int) -> None:
        """Close a stage that was allowed more than `most_bytes`, unless somebody else uses it."""
        async with self._lock:
            live = self._stages.get(key)
            if live is not None and not live.routes and self.is_larger(key, most_bytes):
                await self._close([live])

    def is_larger(self, key: StageKey, most_bytes: int) -> bool:
        """Whether there is a stage by that key that was allowed more than `most_bytes`."""
        live = self._stages.get(key)
        return live is not None and (live.most_bytes is None or live.most_bytes > most_bytes)

    async def close_unused(self) -> None:
        """Close the stages that nobody uses, with which their files may go."""
        async with self._lock:
            await self._close(live for live in self.stages if not live.in_use)

    async def close_idle(self) -> None:
        """Give the memory back of stages that nobody has used for a while."""
        async with self._lock:
            now = time.monotonic()
            await self._close(live for live in self.stages if not live.in_use and now - live.used > IDLE_SECONDS)

    async def close(self) -> None:
        """Close everything."""
        async with self._lock:
            await self._close(self.stages)

    async def _open(
        self,
        key: StageKey,
        model: str,
        open_stage: OpenStage,
        files: AbstractContextManager[object],
        most_bytes: int | None,
    ) -> LiveStage:
        await self._close(live for live in self.stages if not live.in_use)
        budget = StageBudget(_least(self._free_bytes(), most_bytes), self._budget.flag, self._budget.host_bytes)
        with ExitStack() as held:
            held.enter_context(files)
            live = await _result(start_apart(lambda: _open(key, model, open_stage, budget, self._allowance)))
            live.files, live.most_bytes = held.pop_all(), most_bytes
        self._stages[key] = live
        return live

    async def _close(self, stages: Iterable[LiveStage]) -> None:
        for live in list(stages):
            del self._stages[live.key]
            with live.files:
                await asyncio.to_thread(live.runner.close)

    async def _call(self, live: LiveStage, job: Callable[[Stage], T]) -> T:
        return await _result(live.runner.call(job))

    def _free_bytes(self) -> int:
        return self._budget.device_bytes - sum(live.residency.total_bytes for live in self.stages)


async def _result(future: "Future[T]") -> T:
    """Wait for what another thread does."""
    return await asyncio.wrap_future(future)


def _least(num_bytes: int, most_bytes: int | None) -> int:
    return num_bytes if most_bytes is None else min(num_bytes, most_bytes)


def _open(key: StageKey, model: str, open_stage: OpenStage, budget: StageBudget, allowance: Allowance) -> LiveStage:
    with at_work():
        stage = open_stage(budget)
    try:
        residency = _reserve_for_plan(stage)
        with measuring_turn():
            prediction = predict([residency], measure_profile(stage))
    except BaseException:
        stage.close()
        raise
    runner = StageRunner(stage, str(key.span), allowance)
    seconds_per_token = prediction.seconds_per_token
    return LiveStage(key, model, runner, residency, seconds_per_token, time.monotonic(), weight_form=stage.weight_form)


def _reserve_for_plan(stage: Stage) -> Residency:
    """Make room for as long a sequence as memory has room for, of those that are usual."""
    *longer, shortest = planned_sizes(None)
    for size in longer:
        with suppress(BudgetError):
            residency = _reserve(stage, PLANNING, size)
            stage.release(PLANNING)
            return residency
    residency = _reserve(stage, PLANNING, shortest)
    stage.release(PLANNING)
    return residency


def _reserve(stage: Stage, session: SessionId, size: SequenceSize) -> Residency:
    stage.reserve(session, size)
    assert stage.residency is not None
    return stage.residency
