"""The stages of a model in a row."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Protocol

from layermesh.coordinator.recovery.failover import Failover
from layermesh.coordinator.recovery.past import Past
from layermesh.shared.footprint import SequenceSize
from layermesh.shared.frames import Failure, Frame, Logits, Outcome, SessionId
from layermesh.shared.spans import LayerSpan


class Hop(Protocol):
    """A stage as the coordinator sees it, in this process or on another machine."""

    @property
    def span(self) -> LayerSpan:
        """The layers it runs."""
        ...

    def reserve(self, session: SessionId, size: SequenceSize) -> None:
        """Make room for a session of `size` beside those there are; raises BudgetError."""
        ...

    def forward(self, frames: Sequence[Frame]) -> list[Outcome]:
        """Run one sweep; the last hop answers with logits, the others with the frames for the next one.

        A frame whose session failed becomes a Failure, and only that one.
        """
        ...

    def release(self, session: SessionId) -> None:
        """Forget a session."""
        ...


class Line(ABC):
    """All layers of a model, in this process or on several machines."""

    def __init__(self) -> None:
        self.sessions: set[SessionId] = set()
        self.failovers: list[Failover] = []

    def reserve(self, session: SessionId, size: SequenceSize) -> None:
        """Make room for a session of `size` beside those there are; `release` gives it back. Raises BudgetError."""
        self._reserve(session, size)
        self.sessions.add(session)

    def release(self, session: SessionId) -> None:
        """Forget a session."""
        self.sessions.discard(session)
        self._release(session)

    @abstractmethod
    def _reserve(self, session: SessionId, size: SequenceSize) -> None: ...

    @abstractmethod
    def _release(self, session: SessionId) -> None: ...

    @abstractmethod
    def outcomes(self, frames: Sequence[Frame]) -> Iterator[Logits | Failure]:
        """Run calls through all layers and yield what becomes of each: one session's in order, or one each of several.

        On other machines they are under way from this call on, where nothing keeps them; here they begin when they are asked
        for.
        """

    def try_sweep(self, frames: Sequence[Frame]) -> list[Logits | Failure]:
        """Run `frames`, each of another session, and return what became of each, in order."""
        ended = {outcome.session: outcome for outcome in self.outcomes(frames)}
        return [ended[frame.session] for frame in frames]

    def sweep(self, frames: Sequence[Frame]) -> list[Logits]:
        """Run `frames`, each of another session, and return their logits in order.

        Raises the first failure; `try_sweep` tells what became of each.
        """
        return [_passed(outcome) for outcome in self.try_sweep(frames)]

    def run(self, frames: Sequence[Frame]) -> Iterator[Logits]:
        """Run the calls of one session, one after the other, and yield their logits, which raises what makes it fail.

        They are under way as those of `outcomes` are.
        """
        return map(_passed, self.outcomes(frames))


def _passed(outcome: Logits | Failure) -> Logits:
    if isinstance(outcome, Failure):
        raise outcome.error
    return outcome


def in_sweeps(frames: Sequence[Frame]) -> list[Sequence[Frame]]:
    """Return which of `frames` may share a sweep: one after the other where they are one session's."""
    if len({frame.session for frame in frames}) == len(frames):
        return [frames]
    return [[frame] for frame in frames]


class Resumable(Line):
    """A line on which sessions that began on another one can go on.

    `begins_at_once` says whether calls are under way before anybody asks for what becomes of them.
    """

    begins_at_once = False

    @property
    def leaving(self) -> frozenset[str]:
        """The ids of workers that said goodbye."""
        return frozenset()

    @abstractmethod
    def resume(self, session: SessionId, past: Past) -> int | None:
        """Make room for a session that has a past, and return the last hop that lacks it; None where none does.

        Raises BudgetError, and WorkerLostError where a worker goes away.
        """

    @abstractmethod
    def replay(self, pasts: Sequence[tuple[Past, int]]) -> None:
        """Run the calls of sessions again, of all at the same time, each up to the hop that lacks them last.

        Raises what makes it fail.
        """


class Pipeline(Resumable):
    """Passes frames from hop to hop in this process, from the first layer to the logits."""

    def __init__(self, hops: Sequence[Hop]) -> None:
        starts = [hop.span.start for hop in hops]
        ends = [hop.span.end for hop in hops]
        if not hops or starts != [0, *ends[:-1]]:
            raise ValueError(f"hops must follow each other from layer 0 on, not {[str(hop.span) for hop in hops]}")
        super().__init__()
        self._hops = tuple(hops)

    def _reserve(self, session: SessionId, size: SequenceSize) -> None:
        for hop in self._hops:
            hop.reserve(session, size)

    def outcomes(self, frames: Sequence[Frame]) -> Iterator[Logits | Failure]:
        """Run calls through all layers and yield what becomes of each: one session's in order, or one each of several."""
        for sweep in in_sweeps(frames):
            yield from self._sweep(sweep)

    def _sweep(self, frames: Sequence[Frame]) -> list[Logits | Failure]:
        ended: list[Logits | Failure] = []
        passing: Sequence[Frame] = frames
        for hop in self._hops:
            outcomes = hop.forward(passing)
            passing = [outcome for outcome in outcomes if isinstance(outcome, Frame)]
            ended += [outcome for outcome in outcomes if not isinstance(outcome, Frame)]
        return ended

    def resume(self, session: SessionId, past: Past) -> int | None:
        """Make room for a session that has a past; here it lacks all of it. Raises BudgetError."""
        self.release(session)
        self.reserve(session, past.size)
        return len(self._hops) - 1 if past.frames else None

    def replay(self, pasts: Sequence[tuple[Past, int]]) -> None:
        """Run the calls of sessions again, in the sweeps of the longest of them."""
        for frames in zip_longest(*(past.frames for past, _ in pasts)):
            self.sweep([frame for frame in frames if frame is not None])

    def _release(self, session: SessionId) -> None:
        for hop in self._hops:
            hop.release(session)
