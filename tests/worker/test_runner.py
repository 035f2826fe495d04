import threading

import pytest

from layermesh.shared.errors import BusyError, MeshError
from layermesh.shared.frames import Failure, Frame, SessionId
from layermesh.shared.wire import Envelope
from layermesh.worker.runner import StageRunner
from tests.running import wait_until


class FakeStage:
    """Hands frames on, and remembers which shared a sweep; a gate holds it in the middle of one."""

    def __init__(self, *, streams):
        self.streams = streams
        self.sweeps: list[list[str]] = []
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.is_closed = False
        self.entered = 0

    def check(self, frame):
        if frame.position < 0 or frame.session == "odd":
            raise MeshError("it does not continue its session")

    def forward(self, frames, *, are_checked):
        assert are_checked
        self.entered += 1
        self.gate.wait(10)
        self.sweeps.append([frame.session for frame in frames])
        if self.error is not None:
            raise self.error
        return list(frames)

    def release(self, session):
        self.released = session

    def close(self):
        self.is_closed = True


class Delivered(list):
    def __call__(self, ran, time):
        assert time.waited >= 0
        assert time.computed >= 0
        self.append({envelope.frame.session: outcome for envelope, outcome in ran})


@pytest.fixture(params=[True, False], ids=["streaming", "resident"])
def stage(request):
    return FakeStage(streams=request.param)


@pytest.fixture
def runner(stage):
    runner = StageRunner(stage, "test")
    yield runner
    stage.gate.set()
    if not stage.is_closed:
        runner.close()


def envelopes(*names, tokens=(1,), step=0, epoch=0):
    return [Envelope("route", 0, 0, len(names), Frame(SessionId(name), epoch, step, 0, tokens)) for name in names]


def held(stage, runner, deliver):
    """Have a sweep under way that will not end until the gate opens."""
    stage.gate.clear()
    runner.run(envelopes("first"), deliver)
    wait_until(lambda: stage.entered == 1)


def test_what_comes_first_runs_first_and_frames_that_wait_share_a_sweep_where_that_saves_reading(stage, runner):
    delivered = Delivered()
    held(stage, runner, delivered)
    for names, step in (("ab", 0), ("c", 0), ("a", 1), ("d", 0)):
        runner.run(envelopes(*names, step=step), delivered)
    stage.gate.set()
    wait_until(lambda: len(delivered) == 5)
    together = [["first"], ["a", "b", "c"], ["a", "d"]]
    assert stage.sweeps == (together if stage.streams else [["first"], ["a", "b"], ["c"], ["a"], ["d"]])
    assert [sorted(one) for one in delivered] == [["first"], ["a", "b"], ["c"], ["a"], ["d"]]


def test_calls_come_between_sweeps_in_their_turn(stage, runner):
    delivered = Delivered()
    held(stage, runner, delivered)
    runner.run(envelopes("a"), delivered)
    future = runner.call(lambda stage: list(stage.sweeps))
    runner.run(envelopes("b"), delivered)
    stage.gate.set()
    assert future.result(10) == [["first"], ["a"]]
    wait_until(lambda: len(delivered) == 3)
    assert stage.sweeps == [["first"], ["a"], ["b"]]


def test_a_call_that_fails_takes_nothing_with_it(stage, runner):
    with pytest.raises(ZeroDivisionError):
        runner.call(lambda _: 1 // 0).result(10)
    assert runner.call(lambda _: 5).result(10) == 5


def test_a_call_that_nobody_waits_for_any_more_is_passed_over(stage, runner):
    held(stage, runner, Delivered())
    future = runner.call(lambda stage: stage.sweeps.append(["done"]))
    assert future.cancel()
    stage.gate.set()
    runner.call(lambda _: None).result(10)
    assert stage.sweeps == [["first"]]


@pytest.mark.parametrize("error", [MeshError("ours"), RuntimeError("theirs")], ids=["ours", "theirs"])
def test_a_sweep_that_fails_fails_all_its_sessions_and_no_other(stage, runner, error):
    delivered = Delivered()
    stage.error = error
    runner.run(envelopes("a", "b"), delivered)
    wait_until(lambda: len(delivered) == 1)
    stage.error = None
    runner.run(envelopes("c"), delivered)
    wait_until(lambda: len(delivered) == 2)
    assert all(isinstance(outcome, Failure) and str(error) in str(outcome.error) for outcome in delivered[0].values())
    assert set(delivered[0]) == {"a", "b"}
    assert isinstance(delivered[1]["c"], Frame)


def test_a_frame_that_does_not_fit_fails_alone(stage, runner):
    delivered = Delivered()
    runner.run(envelopes("a", "odd"), delivered)
    wait_until(lambda: len(delivered) == 1)
    assert isinstance(delivered[0]["a"], Frame)
    assert isinstance(delivered[0]["odd"], Failure)
    assert stage.sweeps == [["a"]]


def test_the_time_of_a_token_is_the_median_of_those_that_came_alone(stage, runner):
    delivered = Delivered()
    assert runner.seconds_per_token == 0
    runner.run(envelopes("a", tokens=(1, 2)), delivered)
    wait_until(lambda: len(delivered) == 1)
    assert runner.seconds_per_token == 0
    runner.run(envelopes("a", step=1), delivered)
    wait_until(lambda: len(delivered) == 2)
    assert runner.seconds_per_token > 0


def test_a_frame_that_comes_once_more_is_not_computed_again(stage, runner):
    delivered = Delivered()
    runner.run(envelopes("a"), delivered)
    runner.run(envelopes("a", epoch=3), delivered)
    runner.run(envelopes("a", tokens=(2,)), delivered)
    wait_until(lambda: len(delivered) == 3)
    assert stage.sweeps == [["a"]]
    assert [outcome["a"].epoch for outcome in delivered[:2]] == [0, 3]
    assert isinstance(delivered[2]["a"], Failure)
    assert runner.goes_on(SessionId("a"), 1).result(10)
    runner.release(SessionId("a")).result(10)
    assert not runner.goes_on(SessionId("a"), 1).result(10)


def test_what_cannot_be_kept_is_delivered_all_the_same_and_cannot_be_gone_on_from(stage, runner, monkeypatch):
    def fails(*_):
        raise MemoryError

    monkeypatch.setattr(runner._kept, "add", fails)
    delivered = Delivered()
    runner.run(envelopes("a"), delivered)
    wait_until(lambda: len(delivered) == 1)
    assert isinstance(delivered[0]["a"], Frame)
    assert not runner.goes_on(SessionId("a"), 1).result(10)


def test_closing_finishes_the_sweep_and_turns_away_what_waits(stage, runner):
    delivered = Delivered()
    held(stage, runner, delivered)
    runner.run(envelopes("late"), delivered)
    future = runner.call(lambda _: None)
    closing = threading.Thread(target=runner.close)
    closing.start()
    stage.gate.set()
    closing.join(10)
    assert stage.is_closed
    assert isinstance(delivered[0]["first"], Frame)
    runner.run(envelopes("later"), delivered)
    for outcome in (delivered[1]["late"], delivered[2]["later"]):
        assert isinstance(outcome, Failure)
        assert isinstance(outcome.error, BusyError)
    for turned_away in (future, runner.call(lambda _: None)):
        with pytest.raises(BusyError, match="make room"):
            turned_away.result(10)
