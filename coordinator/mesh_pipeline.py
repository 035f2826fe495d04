"""The stages of a model on several machines, the last of them perhaps in this process."""

import itertools
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from layermesh.coordinator.pipeline import Hop, Line
from layermesh.shared.footprint import SequenceSize
from layermesh.shared.frames import Failure, Frame, Logits, Outcome, SessionId
from layermesh.shared.wire import Envelope, HopTime, Scores

if TYPE_CHECKING:
    from layermesh.coordinator.remote_route import RemoteRoute

AHEAD_PER_HOP = 2  # calls of a prompt that are under way for each machine, so that none of them rests
RECENT = 256  # sweeps over which medians are taken


@dataclass(frozen=True, slots=True)
class SweepTime:
    """Where the seconds of a sweep went: at each hop, in the stage here, and in all."""

    hops: tuple[HopTime, ...]
    own: float
    total: float

    @property
    def network(self) -> float:
        """What was spent on the way: on the wire, and in the software on both sides of it."""
        return self.total - self.own - sum(hop.waited + hop.computed for hop in self.hops)


class OwnHop(Hop, Protocol):
    """A stage in this process."""

    @property
    def streams(self) -> bool:
        """Whether it reads blocks in every sweep."""
        ...


class MeshPipeline(Line):
    """Passes frames along a route of workers, then through `own`, the stage that runs here if there is one.

    Frames of many sessions go one by one, so that every machine has something to do, unless one of them streams.
    `waiting` is called now and then while nothing comes back.
    """

    def __init__(self, route: "RemoteRoute", own: OwnHop | None, waiting: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.route = route
        self.times: deque[SweepTime] = deque(maxlen=RECENT)
        self._own = own
        self._waiting = waiting
        self._sweeps = itertools.count()

    @property
    def is_broken(self) -> bool:
        """Whether a worker went away."""
        return self.route.is_broken

    def _reserve(self, session: SessionId, size: SequenceSize) -> None:
        try:
            if self._own is not None:
                self._own.reserve(session, size)
            self.route.reserve(session, size)
        except BaseException:
            self._release(session)
            raise

    def _release(self, session: SessionId) -> None:
        if self._own is not None:
            self._own.release(session)
        self.route.release(session)

    def try_sweep(self, frames: Sequence[Frame]) -> list[Logits | Failure]:
        """Run `frames`, each of another session, through all layers and return what became of each, in order."""
        if len(frames) == 1:
            return [self._sweep_one(frames[0])]
        together = self._streams
        for group in [frames] if together else [[frame] for frame in frames]:
            self.route.send(group, next(self._sweeps))
        ended: dict[SessionId, Logits | Failure] = {}
        passing: dict[SessionId, Frame] = {}
        while len(ended) + len(passing) < len(frames):
            outcome, _ = self._receive(frames)
            if not isinstance(outcome, Frame):
                ended[outcome.session] = outcome
            elif together:
                passing[outcome.session] = outcome
            else:
                ended |= self._run_own([outcome])
        ended |= self._run_own([passing[frame.session] for frame in frames if frame.session in passing])
        return [ended[frame.session] for frame in frames]

    def run(self, frames: Sequence[Frame]) -> Iterator[Logits]:
        """Run the calls of one session and yield their logits; several are under way at once, on different machines."""
        if len(frames) == 1:
            yield from self.sweep(frames)
            return
        waiting = deque(frames)
        for _ in range(AHEAD_PER_HOP * (len(self.route.hops) + 1)):
            self._send_next(waiting)
        for frame in frames:
            outcome, _ = self._receive([frame])
            self._send_next(waiting)
            if isinstance(outcome, Frame):
                outcome = self._run_own([outcome])[frame.session]
            if isinstance(outcome, Failure):
                raise outcome.error
            yield outcome

    def hop_times(self) -> list[HopTime]:
        """Medians over recent sweeps of what each hop took."""
        columns = zip(*(sweep.hops for sweep in self.times), strict=True) if self.times else ()
        return [
            HopTime(statistics.median(time.waited for time in hop), statistics.median(time.computed for time in hop))
            for hop in columns
        ]

    def network_seconds(self) -> float:
        """Median over recent sweeps of what was spent between the machines."""
        return statistics.median(sweep.network for sweep in self.times) if self.times else 0.0

    def own_seconds(self) -> float:
        """Median over recent sweeps of what the stage here took."""
        return statistics.median(sweep.own for sweep in self.times) if self.times else 0.0

    def close(self) -> None:
        """Let go of the workers."""
        self.route.close()

    def _send_next(self, waiting: deque[Frame]) -> None:
        if waiting:
            self.route.send([waiting.popleft()], next(self._sweeps))

    @property
    def _streams(self) -> bool:
        """Whether a machine reads blocks in every sweep: then the frames of a sweep had better stay together."""
        return self.route.streams or (self._own is not None and self._own.streams)

    def _sweep_one(self, frame: Frame) -> Logits | Failure:
        began = time.monotonic()
        self.route.send([frame], next(self._sweeps))
        outcome, times = self._receive([frame])
        arrived = time.monotonic()
        if isinstance(outcome, Frame):
            outcome = self._run_own([outcome])[frame.session]
        now = time.monotonic()
        if len(times) == len(self.route.hops):
            self.times.append(SweepTime(times, now - arrived, now - began))
        return outcome

    def _receive(self, frames: Sequence[Frame]) -> tuple[Outcome, tuple[HopTime, ...]]:
        """Return what became of one of `frames`; what comes of sessions that were released in the middle is dropped."""
        while True:
            outcome, times = _opened(self.route.receive(self._waiting))
            if any((outcome.session, outcome.step) == (frame.session, frame.step) for frame in frames):
                return outcome, times

    def _run_own(self, frames: Sequence[Frame]) -> dict[SessionId, Logits | Failure]:
        if not frames:
            return {}
        assert self._own is not None, "the last worker of the route has the head"
        outcomes = self._own.forward(frames)
        return {outcome.session: outcome for outcome in outcomes if not isinstance(outcome, Frame)}


def _opened(arrival: Envelope | Scores | Failure) -> tuple[Outcome, tuple[HopTime, ...]]:
    if isinstance(arrival, Envelope):
        return arrival.frame, arrival.times
    if isinstance(arrival, Scores):
        return arrival.logits, arrival.times
    return arrival, ()
