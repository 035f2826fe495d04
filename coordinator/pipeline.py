"""The stages of a model in a row."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Protocol

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

    @property
    def is_broken(self) -> bool:
        """Whether nothing can be run any more."""
        return False

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
    def try_sweep(self, frames: Sequence[Frame]) -> list[Logits | Failure]:
        """Run `frames`, each of another session, through all layers and return what became of each, in order."""

    def sweep(self, frames: Sequence[Frame]) -> list[Logits]:
        """Run `frames`, each of another session, through all layers and return their logits in order.

        Raises the first failure; `try_sweep` tells what became of each.
        """
        logits = []
        for outcome in self.try_sweep(frames):
            if isinstance(outcome, Failure):
                raise outcome.error
            logits.append(outcome)
        return logits

    def run(self, frames: Sequence[Frame]) -> Iterator[Logits]:
        """Run the calls of one session, one after the other, and yield their logits."""
        for frame in frames:
            yield from self.sweep([frame])


class Pipeline(Line):
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

    def try_sweep(self, frames: Sequence[Frame]) -> list[Logits | Failure]:
        """Run `frames`, each of another session, through all layers and return what became of each, in order."""
        ended: dict[SessionId, Logits | Failure] = {}
        passing: Sequence[Frame] = frames
        for hop in self._hops:
            outcomes = hop.forward(passing)
            passing = [outcome for outcome in outcomes if isinstance(outcome, Frame)]
            ended |= {outcome.session: outcome for outcome in outcomes if not isinstance(outcome, Frame)}
        return [ended[frame.session] for frame in frames]

    def _release(self, session: SessionId) -> None:
        for hop in self._hops:
            hop.release(session)
