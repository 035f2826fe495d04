"""The stages of a model in a row."""

from collections.abc import Sequence
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


class Pipeline:
    """Passes frames from hop to hop, from the first layer to the logits."""

    def __init__(self, hops: Sequence[Hop]) -> None:
        starts = [hop.span.start for hop in hops]
        ends = [hop.span.end for hop in hops]
        if not hops or starts != [0, *ends[:-1]]:
            raise ValueError(f"hops must follow each other from layer 0 on, not {[str(hop.span) for hop in hops]}")
        self._hops = tuple(hops)

    def reserve(self, session: SessionId, size: SequenceSize) -> None:
        """Make room on every hop for a session of `size` beside those there are; `release` gives it back."""
        for hop in self._hops:
            hop.reserve(session, size)

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

    def try_sweep(self, frames: Sequence[Frame]) -> list[Logits | Failure]:
        """Run `frames`, each of another session, through all layers and return what became of each, in order."""
        ended: dict[SessionId, Logits | Failure] = {}
        passing: Sequence[Frame] = frames
        for hop in self._hops:
            outcomes = hop.forward(passing)
            passing = [outcome for outcome in outcomes if isinstance(outcome, Frame)]
            ended |= {outcome.session: outcome for outcome in outcomes if not isinstance(outcome, Frame)}
        return [ended[frame.session] for frame in frames]

    def release(self, session: SessionId) -> None:
        """Forget a session on every hop."""
        for hop in self._hops:
            hop.release(session)
