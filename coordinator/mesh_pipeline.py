"""The stages of a model on several machines, the last of them perhaps in this process."""

import itertools
import statistics
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from layermesh.coordinator.pipeline import Hop, Resumable, in_sweeps
from layermesh.coordinator.recovery.past import Past
from layermesh.shared.errors import WorkerLostError
from layermesh.shared.footprint import SequenceSize
from layermesh.shared.frames import Failure, Frame, Logits, Outcome, SessionId
from layermesh.shared.hidden_states import HiddenStatesError, blame
from layermesh.shared.wire import Envelope, HopTime, Scores

if TYPE_CHECKING:
    from layermesh.coordinator.remote_route import RemoteRoute, Replayed

LEAST_DEADLINE = 10.0  # seconds that a hop may have a frame, whatever it usually takes
FIRST_DEADLINE = 120.0  # before anybody knows what it usually takes
DEADLINE_FACTOR = 8.0  # times what it usually takes
AVERAGED = 8  # frames over which that is averaged, the more recent the more
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

    def position(self, session: SessionId) -> int:
        """How many tokens of a session have passed it; 0 where it is not known."""
        ...


class MeshPipeline(Resumable):
    """Passes frames along a route of workers, then through `own`, the stage that runs here if there is one.

    Frames of many sessions go one by one, so that every machine has something to do, unless one of them streams.
    `waiting` is called now and then while nothing comes back; `predicted_seconds` is what a token should take.
    """

    begins_at_once = True

    def __init__(
        self,
        route: "RemoteRoute",
        own: OwnHop | None,
        waiting: Callable[[], None] = lambda: None,
        predicted_seconds: float = 0.0,
    ) -> None:
        super().__init__()
        self._seconds_per_token = predicted_seconds  # at the slowest hop, smoothed
        self._has_run = False
        self._patience = FIRST_DEADLINE
        self.route = route
        self.times: deque[SweepTime] = deque(maxlen=RECENT)
        self._own = own
        self._waiting = waiting
        self._sweeps = itertools.count()

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

    @property
    def leaving(self) -> frozenset[str]:
        """The ids of workers that said goodbye."""
        return frozenset(self.route.leaving)

    def outcomes(self, frames: Sequence[Frame]) -> Iterator[Logits | Failure]:
        """Run calls and yield what becomes of each: those of one session in order, or one each of several.

        Several are under way at once, on different machines; a single one is from this call on. Raises WorkerLostError where a
        worker goes away.
        """
        if len(frames) == 1:
            began = time.monotonic()
            self._send(frames)
            return self._finish_one(frames[0], began)
        if len(in_sweeps(frames)) > 1:
            return self._run_ahead(frames)
        return self._run_together(frames) if self._streams else self._run_apart(frames)

    def resume(self, session: SessionId, past: Past) -> int | None:
        """Make room for a session that has a past, and return the last hop that lacks it; None where none does.

        The own stage counts as the hop behind the route. Raises BudgetError and WorkerLostError.
        """
        self.sessions.add(session)
        goes_on = self.route.reserve(session, past.size, len(past.frames))
        if self._own is not None:
            knows = bool(past.frames) and self._own.position(session) == past.num_tokens
            if not knows:
                self._own.release(session)
                self._own.reserve(session, past.size)
            goes_on.append(knows)
        return max((number for number, knows in enumerate(goes_on) if not knows), default=None) if past.frames else None

    def replay(self, pasts: Sequence[tuple[Past, int]]) -> None:
        """Run the calls of sessions again, of all at the same time, each up to the hop that lacks them last.

        Hops before it that still have what they made compute nothing. Raises what makes it fail.
        """
        waiting = {past.frames[0].session: (deque(past.frames), end) for past, end in pasts if past.frames}
        for session in waiting:
            for _ in range(self._num_ahead):
                self._replay_next(waiting, session)
        num_left = sum(len(past.frames) for past, _ in pasts)
        while num_left:
            arrival = self._next_of(waiting)
            if isinstance(arrival, Failure):
                raise arrival.error
            if isinstance(arrival, Envelope):
                outcome = self._run_own([arrival.frame])[arrival.frame.session]
                if isinstance(outcome, Failure):
                    raise outcome.error
            session = arrival.frame.session if isinstance(arrival, Envelope) else _session(arrival)
            self._replay_next(waiting, session)
            num_left -= 1

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

    @property
    def _num_ahead(self) -> int:
        """How many calls of a session may be under way."""
        return AHEAD_PER_HOP * (len(self.route.hops) + 1)

    def _replay_next(self, waiting: dict[SessionId, tuple[deque[Frame], int]], session: SessionId) -> None:
        frames, end = waiting[session]
        if frames:
            frame = frames.popleft()
            end_hop = end if end < len(self.route.hops) else None
            self.route.send([frame], next(self._sweeps), end_hop, self._deadline([frame], self._num_ahead * len(waiting)))

    def _next_of(self, sessions: Collection[SessionId]) -> "Envelope | Scores | Failure | Replayed":
        while True:
            arrival = self.route.receive(self._waiting, self._patience)
            if (arrival.frame.session if isinstance(arrival, Envelope) else _session(arrival)) in sessions:
                return arrival

    def _send(self, frames: Sequence[Frame], num_queued: int = 1) -> None:
        self.route.send(frames, next(self._sweeps), None, self._deadline(frames, num_queued))

    def _deadline(self, frames: Sequence[Frame], num_queued: int) -> float:
        """Return how many seconds a hop may take for `frames`: a multiple of what as many tokens take one by one."""
        num_tokens = num_queued * sum(len(frame.token_ids) for frame in frames)
        seconds = DEADLINE_FACTOR * self._seconds_per_token * num_tokens
        deadline = max(seconds, LEAST_DEADLINE if self._has_run else FIRST_DEADLINE)
        self._patience = LEAST_DEADLINE + deadline * (len(self.route.hops) + 1)  # each hop tells of its own first
        return deadline

    @property
    def _streams(self) -> bool:
        """Whether a machine reads blocks in every sweep: then the frames of a sweep had better stay together."""
        return self.route.streams or (self._own is not None and self._own.streams)

    def _finish_one(self, frame: Frame, began: float) -> Iterator[Logits | Failure]:
        """Yield what becomes of a call that is under way."""
        outcome, times = self._receive([frame])
        seconds = self.route.arrived - began
        if isinstance(outcome, Frame):
            began = time.monotonic()
            outcome = self._run_own([outcome])[frame.session]
            own = time.monotonic() - began
        else:
            own = 0.0
        if len(times) == len(self.route.hops):
            self.times.append(SweepTime(times, own, seconds + own))
            self._note(times, len(frame.token_ids))
        yield outcome

    def _run_ahead(self, frames: Sequence[Frame]) -> Iterator[Logits | Failure]:
        waiting = deque(frames)
        for _ in range(min(self._num_ahead, len(waiting))):
            self._send([waiting.popleft()], self._num_ahead)
        for frame in frames:
            outcome, times = self._receive([frame])
            self._note(times, len(frame.token_ids))
            if waiting:
                self._send([waiting.popleft()], self._num_ahead)
            yield self._run_own([outcome])[frame.session] if isinstance(outcome, Frame) else outcome

    def _run_apart(self, frames: Sequence[Frame]) -> Iterator[Logits | Failure]:
        for frame in frames:
            self._send([frame], len(frames))
        for _ in frames:
            outcome, _ = self._receive(frames)
            yield self._run_own([outcome])[outcome.session] if isinstance(outcome, Frame) else outcome

    def _run_together(self, frames: Sequence[Frame]) -> Iterator[Logits | Failure]:
        self._send(frames)
        passing: dict[SessionId, Frame] = {}
        for _ in frames:
            outcome, _ = self._receive(frames)
            if isinstance(outcome, Frame):
                passing[outcome.session] = outcome
            else:
                yield outcome
        yield from self._run_own([passing[frame.session] for frame in frames if frame.session in passing]).values()

    def _note(self, times: Sequence[HopTime], num_tokens: int) -> None:
        """Note how long a token had at the slowest hop, its turn in the queue included."""
        if times and num_tokens == 1:
            seconds = max(time.waited + time.computed for time in times)
            self._seconds_per_token += (seconds - self._seconds_per_token) / (AVERAGED if self._has_run else 1)
            self._has_run = True

    def _receive(self, frames: Sequence[Frame]) -> tuple[Outcome, tuple[HopTime, ...]]:
        """Return what became of one of `frames`; what comes of sessions that were released in the middle is dropped."""
        while True:
            arrival = self.route.receive(self._waiting, self._patience)
            if not isinstance(arrival, Envelope | Scores | Failure):
                continue
            outcome, times = _opened(arrival)
            if any((outcome.session, outcome.step) == (frame.session, frame.step) for frame in frames):
                return outcome, times

    def _run_own(self, frames: Sequence[Frame]) -> dict[SessionId, Logits | Failure]:
        if not frames:
            return {}
        assert self._own is not None, "the last worker of the route has the head"
        try:
            outcomes = self._own.forward(frames)
        except HiddenStatesError as error:
            last = self.route.hops[-1].client
            raise WorkerLostError(str(blame(error, f"worker {last.name}")), last.worker_id, returns=False) from error
        return {outcome.session: outcome for outcome in outcomes if not isinstance(outcome, Frame)}


def _opened(arrival: Envelope | Scores | Failure) -> tuple[Outcome, tuple[HopTime, ...]]:
    if isinstance(arrival, Envelope):
        return arrival.frame, arrival.times
    if isinstance(arrival, Scores):
        return arrival.logits, arrival.times
    return arrival, ()


def _session(arrival: "Scores | Failure | Replayed") -> SessionId:
    return arrival.logits.session if isinstance(arrival, Scores) else arrival.session
