"""What a stage has made of frames, so that it can be handed on once more where what came after it was lost."""

import threading
from dataclasses import dataclass, field, replace

from layermesh.shared.errors import MeshError
from layermesh.shared.frames import Failure, Frame, LayerOutput, Logits, Outcome, SessionId

KEPT_LOGITS = 16  # of a session; older ones have been used long since
KEPT_BYTES = 64 << 20  # of one machine, where it has as much to spare
SPARE_SHARE = 16  # it takes this fraction of a small budget


def kept_bytes(budget_bytes: int) -> int:
    """Return how much of a budget is set aside for what was made."""
    return min(KEPT_BYTES, budget_bytes // SPARE_SHARE)


class Allowance:
    """Memory that the stages of one machine may keep outcomes in, `num_bytes` in all."""

    def __init__(self, num_bytes: int) -> None:
        self._left = num_bytes
        self._lock = threading.Lock()

    def take(self, num_bytes: int) -> bool:
        """Take some; False where there is not enough left."""
        with self._lock:
            if num_bytes > self._left:
                return False
            self._left -= num_bytes
            return True

    def give(self, num_bytes: int) -> None:
        """Give some back."""
        with self._lock:
            self._left += num_bytes


@dataclass(slots=True)
class _Past:
    """The outcomes of a session by step; None where one was not kept. `is_whole` is whether it can be replayed from."""

    outcomes: list[Outcome | None] = field(default_factory=list)
    calls: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)  # position and token ids
    num_bytes: int = 0
    is_whole: bool = True


class KeptOutcomes:
    """The outcomes of the sessions of one stage; for its thread only.

    What comes twice is not computed twice: that would put the same tokens into a cache again.
    """

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self._sessions: dict[SessionId, _Past] = {}

    def find(self, frame: Frame) -> Outcome | None:
        """Return what `frame` became when it came before; None if it is new.

        Raises MeshError for one that is not what came before, or of which nothing was kept.
        """
        past = self._sessions.get(frame.session)
        if past is None or frame.step >= len(past.outcomes):
            return None
        outcome = past.outcomes[frame.step]
        if past.calls[frame.step] != (frame.position, frame.token_ids):
            raise MeshError(f"session {frame.session} has had other tokens in step {frame.step}. Start it again.")
        if outcome is None:
            raise MeshError(
                f"step {frame.step} of session {frame.session} is past, and nothing of it was kept. Start it again."
            )
        return replace(outcome, epoch=frame.epoch) if isinstance(outcome, Frame) else outcome

    def add(self, frame: Frame, outcome: Outcome) -> None:
        """Keep what `frame` became, if there is room."""
        if isinstance(outcome, Failure):
            self.drop(frame.session)
            return
        past = self._sessions.setdefault(frame.session, _Past())
        if frame.step != len(past.outcomes):
            past.is_whole = False
            return
        past.calls.append((frame.position, frame.token_ids))
        past.outcomes.append(outcome if isinstance(outcome, Logits) else self._kept(past, outcome))
        if isinstance(outcome, Logits) and len(past.outcomes) > KEPT_LOGITS:
            past.outcomes[-KEPT_LOGITS - 1] = None

    def goes_on(self, session: SessionId, num_steps: int) -> bool:
        """Whether a session can go on after `num_steps`: with all hidden states there were, and the scores from there on."""
        past = self._sessions.get(session)
        if past is None or not past.is_whole or len(past.outcomes) < num_steps:
            return False
        return all(outcome is not None for outcome in past.outcomes[num_steps:])

    def drop(self, session: SessionId) -> None:
        """Forget a session."""
        if (past := self._sessions.pop(session, None)) is not None:
            self._allowance.give(past.num_bytes)

    def clear(self) -> None:
        """Forget all sessions."""
        for session in list(self._sessions):
            self.drop(session)

    def _kept(self, past: _Past, outcome: Frame) -> Frame | None:
        output = outcome.hidden
        num_bytes = 0 if output is None else sum(tensor.nbytes for tensor in output.tensors if tensor is not None)
        if not past.is_whole or not self._allowance.take(num_bytes):
            past.is_whole = False
            self._allowance.give(past.num_bytes)
            past.num_bytes = 0
            past.outcomes = [None] * len(past.outcomes)
            return None
        past.num_bytes += num_bytes
        return replace(outcome, hidden=None if output is None else _copied(output))


def _copied(output: LayerOutput) -> LayerOutput:
    """Copy it into host memory that nobody writes to."""
    tensors = (None if tensor is None else tensor.detach().to("cpu", copy=True) for tensor in output.tensors)
    return LayerOutput(tuple(tensors), output.bare)
