import asyncio
import threading
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch

from layermesh.shared.errors import BudgetError, BusyError, MeshError
from layermesh.shared.footprint import SequenceSize
from layermesh.shared.frames import SessionId
from layermesh.shared.profile import Profile
from layermesh.shared.spans import LayerSpan
from layermesh.shared.stage_key import StageKey
from layermesh.worker import host as host_module
from layermesh.worker.host import GRACE_SECONDS, IDLE_SECONDS, Host
from layermesh.worker.opening import StageBudget

SIZE = SequenceSize(8, 8)
BUDGET = 100


@dataclass(frozen=True)
class FakeResidency:
    total_bytes: int
    resident_bytes: int = 0
    streamed_bytes: int = 0

    @property
    def stays_whole(self):
        return self.streamed_bytes == 0


class FakeStage:
    """Takes `least` bytes, and `each` more for every session."""

    streams = False
    weight_form = "int4"

    def __init__(self, budget, least=40, each=10, streamed=0):
        self.budget_bytes = budget.device_bytes
        self.streamed = streamed
        self.least, self.each = least, each
        self.reserved: dict[str, SequenceSize] = {}
        self.residency = None
        self.is_closed = False

    def allow(self, budget_bytes):
        self.budget_bytes = budget_bytes

    def reserve(self, session, size):
        needed = self.least + self.each * len({*self.reserved, session})
        if needed > self.budget_bytes:
            raise BudgetError("it", self.budget_bytes, needed)
        self.reserved[session] = size
        self.residency = FakeResidency(needed, self.least, self.streamed)

    def release(self, session):
        self.reserved.pop(session, None)

    def close(self):
        self.is_closed = True


@pytest.fixture
def now(monkeypatch):
    class Clock:
        seconds = 1000.0

        def monotonic(self):
            return self.seconds

    clock = Clock()
    monkeypatch.setattr(host_module, "time", clock)
    return clock


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch):
    class Prediction:
        seconds_per_token = 0.5

    monkeypatch.setattr(host_module, "measure_profile", lambda _: Profile)
    monkeypatch.setattr(host_module, "predict", lambda *_: Prediction)


def key(number):
    return StageKey("0" * 64, LayerSpan(number, number + 1), "float32", True)


class Opening:
    """Opens stages, and keeps them for a look."""

    def __init__(self, **sizes):
        self.sizes = sizes
        self.opened = []

    def __call__(self, budget):
        self.opened.append(FakeStage(budget, **self.sizes))
        return self.opened[-1]


def running(scenario, *note_run):
    async def run():
        host = Host(torch.device("cpu"), StageBudget(BUDGET), *note_run)
        try:
            await scenario(host)
        finally:
            await host.close()

    asyncio.run(run())


def test_a_stage_is_opened_once_and_lives_on():
    async def scenario(host):
        opening = Opening()
        live = await host.open(key(0), "model", opening)
        assert await host.open(key(0), "model", opening) is live
        assert len(opening.opened) == 1
        assert live.seconds_per_token == 0.5
        assert host.get(key(0)) is live
        assert host.stages == (live,)
        with pytest.raises(BusyError, match="make room"):
            host.get(key(1))

    running(scenario)


def test_what_computes_before_a_stage_is_ready_does_so_in_a_thread_that_ends(monkeypatch):
    computing = []
    monkeypatch.setattr(host_module, "measure_profile", lambda _: computing.append(threading.current_thread()) or Profile)

    async def scenario(host):
        await host.open(key(0), "model", Opening())
        (measurer,) = computing
        await asyncio.to_thread(measurer.join, 20)
        assert not measurer.is_alive()

    running(scenario)


def test_those_that_nobody_uses_make_room_and_those_in_use_do_not(now):
    async def scenario(host):
        opening = Opening()
        first = await host.open(key(0), "model", opening)
        host.enter(first, "route")
        now.seconds += 10 * GRACE_SECONDS
        with pytest.raises(BudgetError):
            await host.open(key(1), "model", Opening(least=60))
        assert not opening.opened[0].is_closed
        await host.leave(first, "route")
        await host.open(key(1), "model", Opening(least=60))
        assert opening.opened[0].is_closed
        assert [live.key for live in host.stages] == [key(1)]

    running(scenario)


def test_one_that_was_just_made_ready_stays_for_whoever_asked(now):
    async def scenario(host):
        await host.open(key(0), "model", Opening())
        now.seconds += GRACE_SECONDS / 2
        with pytest.raises(BudgetError):
            await host.open(key(1), "model", Opening(least=60))
        now.seconds += GRACE_SECONDS
        await host.open(key(1), "model", Opening(least=60))

    running(scenario)


def test_memory_goes_back_after_a_while(now):
    async def scenario(host):
        live = await host.open(key(0), "model", Opening())
        host.enter(live, "route")
        now.seconds += 2 * IDLE_SECONDS
        await host.close_idle()
        assert host.stages
        await host.leave(live, "route")
        await host.close_idle()
        assert host.stages
        now.seconds += 2 * IDLE_SECONDS
        await host.close_idle()
        assert not host.stages

    running(scenario)


def test_sessions_grow_into_what_is_free_and_no_further():
    async def scenario(host):
        one, other = [await host.open(key(number), "model", Opening(least=20)) for number in range(2)]
        for live in (one, other):
            host.enter(live, "route")
        asked = [host.reserve(one if number % 2 else other, SessionId(f"{number}"), "route", SIZE) for number in range(20)]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert any(isinstance(outcome, BudgetError) for outcome in outcomes)
        assert sum(live.residency.total_bytes for live in host.stages) == BUDGET
        assert len(one.sessions) + len(other.sessions) == sum(not isinstance(outcome, Exception) for outcome in outcomes)
        await host.leave(one, "route")
        assert not one.sessions

    running(scenario)


def test_a_session_without_a_route_gets_no_room():
    async def scenario(host):
        live = await host.open(key(0), "model", Opening())
        with pytest.raises(MeshError, match="does not lead here"):
            await host.reserve(live, SessionId("s"), "route", SIZE)
        assert not live.sessions

    running(scenario)


def test_a_session_of_a_stage_that_is_closed_is_forgotten_already():
    async def scenario(host):
        live = await host.open(key(0), "model", Opening())
        host.enter(live, "route")
        await host.reserve(live, SessionId("s"), "route", SIZE)
        await host.close()
        await asyncio.wait_for(host.leave(live, "route"), 10)
        assert not live.sessions

    running(scenario)


def test_a_session_is_forgotten_whoever_stops_waiting_for_that():
    async def scenario(host):
        opening = Opening()
        live = await host.open(key(0), "model", opening)
        host.enter(live, "route")
        await host.reserve(live, SessionId("s"), "route", SIZE)
        busy, go_on = threading.Event(), threading.Event()
        live.runner.call(lambda _: (busy.set(), go_on.wait(10)))
        await asyncio.to_thread(busy.wait, 10)
        leaving = asyncio.create_task(host.leave(live, "route"))
        for _ in range(3):
            await asyncio.sleep(0)
            leaving.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert not opening.opened[0].reserved

    running(scenario)


def test_files_are_held_as_long_as_the_stage_lives():
    held = []

    @contextmanager
    def files():
        held.append("held")
        yield
        held.append("let go")

    async def scenario(host):
        await host.open(key(0), "model", Opening(), files())
        assert held == ["held"]
        await host.close()
        assert held == ["held", "let go"]
        with pytest.raises(BudgetError):
            await host.open(key(0), "model", Opening(least=1000), files())
        assert held == ["held", "let go", "held"] or held[-1] == "let go"

    running(scenario)


@pytest.mark.parametrize(("streamed", "told"), [(0, [("0" * 64, "int4", 0.5 / 40)]), (7, [])], ids=["in memory", "streaming"])
def test_what_tokens_took_is_noted_when_a_session_ends(streamed, told):
    noted = []

    async def scenario(host):
        live = await host.open(key(0), "model", Opening(streamed=streamed))
        host.enter(live, "route")
        live.sessions[SessionId("one")] = "route"
        await host.release(live, SessionId("one"))
        assert noted == []  # nothing ran
        live.runner._recent.extend([0.25, 0.5, 2.0])
        live.sessions[SessionId("two")] = "route"
        await host.release(live, SessionId("two"))
        assert noted == told  # a route may last
        await host.leave(live, "route")
        assert noted == told

    running(scenario, lambda *run: noted.append(run))


def test_a_stage_that_is_to_take_less_is_opened_anew_unless_somebody_uses_it():
    async def scenario(host):
        live = await host.open(key(0), "model", Opening(least=20))
        host.enter(live, "route")
        await host.close_larger(key(0), 40)
        assert host.find(key(0)) is live
        await host.leave(live, "route")
        await host.close_larger(key(0), 40)
        assert host.find(key(0)) is None
        live = await host.open(key(0), "model", Opening(least=20), None, 40)
        host.enter(live, "route")
        outcomes = [await tried(host.reserve(live, SessionId(str(number)), "route", SIZE)) for number in range(5)]
        assert live.residency.total_bytes <= 40
        assert any(isinstance(outcome, BudgetError) for outcome in outcomes)
        await host.leave(live, "route")
        await host.close_larger(key(0), 40)
        assert host.find(key(0)) is live

    running(scenario)


def test_a_session_stays_on_the_route_on_which_it_came():
    async def scenario(host):
        live = await host.open(key(0), "model", Opening(least=20))
        for route in ("route", "other"):
            host.enter(live, route)
        await host.reserve(live, SessionId("s"), "route", SIZE)
        with pytest.raises(MeshError, match="belongs to another route"):
            await host.reserve(live, SessionId("s"), "other", SIZE)
        assert live.sessions == {"s": "route"}

    running(scenario)


async def tried(work):
    try:
        return await work
    except BudgetError as error:
        return error
