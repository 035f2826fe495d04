"""Many answers at once: board, dispatch, sample, until nobody waits."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from layermesh.coordinator.boarding import Boarding
from layermesh.coordinator.generation import Answering
from layermesh.coordinator.pipeline import Line
from layermesh.shared.errors import LayermeshError
from layermesh.shared.frames import Failure, Frame, Logits

Board = Callable[[int], Answering | None]


@dataclass(frozen=True, slots=True)
class NewToken:
    """The answer to prompt `index` has grown by a token."""

    index: int
    token_id: int


@dataclass(frozen=True, slots=True)
class Failed:
    """Prompt `index` gets no answer; the others go on."""

    index: int
    error: LayermeshError


class Together:
    """The sessions that share the sweeps of a pipeline.

    `board` makes room for the prompt of an index and returns its session; None where there is no room beside those aboard,
    which it is never asked for without anybody aboard to return. It raises what that prompt can be blamed for.
    """

    def __init__(self, pipeline: Line, boarding: Boarding, board: Board) -> None:
        self.num_sweeps = 0
        self._pipeline = pipeline
        self._boarding = boarding
        self._board = board
        self._sessions: dict[int, Answering] = {}

    def generate(self) -> Generator[NewToken | Failed]:
        """Yield what becomes of the prompts as it happens; all sessions are released whatever happens.

        Those who finish leave and those who wait board between two sweeps. A finish reason that is given to a session from
        outside, between two tokens, ends it. Raises what concerns everybody, such as CheckpointError for a block.
        """
        try:
            while not self._boarding.is_over:
                yield from self._board_all()
                yield from self._sweep()
        finally:
            for session in self._sessions.values():
                self._pipeline.release(session.session)

    def _board_all(self) -> Iterator[Failed]:
        while (index := self._boarding.candidate) is not None:
            try:
                session = self._board(index)
            except LayermeshError as error:
                self._boarding.turn_away()
                yield Failed(index, error)
                continue
            if session is None:
                self._boarding.wait()
            else:
                self._boarding.board()
                self._sessions[index] = session

    def _sweep(self) -> Iterator[NewToken | Failed]:
        aboard = [(index, self._sessions[index]) for index in self._boarding.aboard]
        if not aboard:
            return
        frames = [session.next_frame() for _, session in aboard]
        outcomes = self._pipeline.try_sweep(frames)
        self.num_sweeps += 1
        for (index, session), frame, outcome in zip(aboard, frames, outcomes, strict=True):
            try:
                token_id = _accept(session, frame, outcome)
            except LayermeshError as error:
                self._leave(index)
                yield Failed(index, error)
                continue
            if token_id is not None:
                yield NewToken(index, token_id)
            if session.finish_reason is not None:
                self._leave(index)

    def _leave(self, index: int) -> None:
        self._boarding.leave(index)
        self._pipeline.release(self._sessions.pop(index).session)


def _accept(session: Answering, frame: Frame, outcome: Logits | Failure) -> int | None:
    if isinstance(outcome, Failure):
        raise outcome.error
    return session.accept(frame, outcome)
