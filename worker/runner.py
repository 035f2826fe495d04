"""A stage at work in a thread of its own: receive, run, send."""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from layermesh.shared.errors import BusyError, LayermeshError, MeshError
from layermesh.shared.frames import Failure, Frame, Outcome, SessionId
from layermesh.shared.wire import Envelope, HopTime
from layermesh.worker.kept import Allowance, KeptOutcomes
from layermesh.worker.stage import Stage

T = TypeVar("T")
Deliver = Callable[[list[tuple[Envelope, Outcome]], HopTime], None]

RECENT = 32  # sweeps over which a median is taken


@dataclass(frozen=True, slots=True)
class _Group:
    """Frames that came together, when they came, and who wants to know what becomes of them."""

    envelopes: Sequence[Envelope]
    since: float
    deliver: Deliver
    begin: Callable[[], None]

    @property
    def sessions(self) -> set[SessionId]:
        return {envelope.frame.session for envelope in self.envelopes}


@dataclass(frozen=True, slots=True)
class _Call:
    """Something else to be done with the stage between two sweeps."""

    job: Callable[[Stage], Any]
    future: "Future[Any]"


class StageRunner:
    """Owns `stage` and everything that happens to it, one after the other.

    A frame that comes once more, on another route for instance, becomes what it became before, as far as `allowance` has room
    to keep that. Where it streams, frames that wait when a sweep begins share it, whichever routes they belong to, as long as
    no session has two of them. Otherwise nothing is won by that, and the machine behind would wait for all of them.
    """

    def __init__(self, stage: Stage, name: str, allowance: Allowance | None = None) -> None:
        self._stage = stage
        self._kept = KeptOutcomes(allowance or Allowance(0))
        self._inbox: queue.SimpleQueue[_Group | _Call | None] = queue.SimpleQueue()  # None: the end
        self._is_closed = False
        self._closing = threading.Lock()
        self._waiting: deque[_Group | _Call] = deque()
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._thread = threading.Thread(target=self._work, name=f"stage-{name}", daemon=True)
        self._thread.start()

    @property
    def seconds_per_token(self) -> float:
        """Median of the recent sweeps with one token of one session; 0 before there were any."""
        recent = sorted(self._recent)
        return recent[len(recent) // 2] if recent else 0.0

    def run(self, envelopes: Sequence[Envelope], deliver: Deliver, begin: Callable[[], None] = lambda: None) -> None:
        """Run frames of different sessions in the same sweep.

        `begin` is called when their turn has come, `deliver` with what became of them, both from the stage's thread.
        """
        self._put(_Group(envelopes, time.monotonic(), deliver, begin))

    def call(self, job: Callable[[Stage], T]) -> "Future[T]":
        """Do `job` between two sweeps; the future has a BusyError where the stage was closed before."""
        future: Future[T] = Future()
        self._put(_Call(job, future))
        return future

    def goes_on(self, session: SessionId, num_steps: int) -> "Future[bool]":
        """Return whether a session of which `num_steps` have come back can go on from there."""
        return self.call(lambda _: self._kept.goes_on(session, num_steps))

    def release(self, session: SessionId) -> "Future[None]":
        """Forget a session."""

        def forget(stage: Stage) -> None:
            self._kept.drop(session)
            stage.release(session)

        return self.call(forget)

    def close(self) -> None:
        """Finish the sweep that is under way, turn away what waits, and give the stage's memory back."""
        with self._closing:
            self._is_closed = True
            self._inbox.put(None)
        self._thread.join()
        self._kept.clear()
        self._stage.close()

    def _put(self, item: "_Group | _Call") -> None:
        with self._closing:
            if not self._is_closed:
                self._inbox.put(item)
                return
        _turn_away(item)

    def _work(self) -> None:
        while self._receive():
            first = self._waiting.popleft()
            if isinstance(first, _Call):
                _do(first, self._stage)
            else:
                self._run([first, *(self._companions(first) if self._stage.streams else ())])
        for item in self._waiting:
            _turn_away(item)

    def _receive(self) -> bool:
        """Take in what has come, and wait for something if nothing has; False at the end."""
        while not self._waiting or not self._inbox.empty():
            item = self._inbox.get()
            if item is None:
                return False
            self._waiting.append(item)
        return True

    def _companions(self, first: _Group) -> list[_Group]:
        """Take from the head of the queue the groups that can share a sweep with `first`."""
        aboard, companions = first.sessions, []
        while self._waiting and isinstance(group := self._waiting[0], _Group) and not aboard & group.sessions:
            aboard |= group.sessions
            companions.append(group)
            self._waiting.popleft()
        return companions

    def _run(self, groups: Sequence[_Group]) -> None:
        began = time.monotonic()
        for group in groups:
            group.begin()
        outcomes, frames = self._known([envelope.frame for group in groups for envelope in group.envelopes])
        outcomes |= self._compute(frames)
        seconds = time.monotonic() - began
        if sum(len(frame.token_ids) for frame in frames) == 1:
            self._recent.append(seconds)
        for group in groups:
            paired = [(envelope, outcomes[envelope.frame.session]) for envelope in group.envelopes]
            group.deliver(paired, HopTime(began - group.since, seconds))
        for frame in frames:  # now, while it is on its way
            self._keep(frame, outcomes[frame.session])

    def _known(self, frames: Sequence[Frame]) -> tuple[dict[SessionId, Outcome], list[Frame]]:
        """Return what can be said of frames without computing, and those that are to be run."""
        outcomes: dict[SessionId, Outcome] = {}
        fit = []
        for frame in frames:
            try:
                if (known := self._kept.find(frame)) is not None:
                    outcomes[frame.session] = known
                    continue
                self._stage.check(frame)
                fit.append(frame)
            except LayermeshError as error:
                outcomes[frame.session] = Failure(frame.session, frame.step, error)
        return outcomes, fit

    def _compute(self, frames: Sequence[Frame]) -> dict[SessionId, Outcome]:
        try:
            ran: list[Outcome] = self._stage.forward(frames, are_checked=True) if frames else []
        except Exception as error:  # whatever it was, nobody may wait for an answer in vain
            ours = error if isinstance(error, LayermeshError) else MeshError(f"{type(error).__name__}: {error}")
            ran = [Failure(frame.session, frame.step, ours) for frame in frames]
        return {outcome.session: outcome for outcome in ran}

    def _keep(self, frame: Frame, outcome: Outcome) -> None:
        try:
            self._kept.add(frame, outcome)
        except Exception:  # of memory, or of a device: then it cannot be asked for again
            self._kept.drop(frame.session)


def _turn_away(item: _Group | _Call) -> None:
    """Tell whoever waits for `item` that the stage is gone."""
    error = BusyError("these layers are not ready here any more; they had to make room.")
    if isinstance(item, _Group):
        frames = [(envelope, envelope.frame) for envelope in item.envelopes]
        item.deliver([(envelope, Failure(frame.session, frame.step, error)) for envelope, frame in frames], HopTime(0.0, 0.0))
    elif item.future.set_running_or_notify_cancel():
        item.future.set_exception(error)


def _do(call: _Call, stage: Stage) -> None:
    if not call.future.set_running_or_notify_cancel():
        return
    try:
        result = call.job(stage)
    except BaseException as error:
        call.future.set_exception(error)
    else:
        call.future.set_result(result)
