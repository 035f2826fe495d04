"""Many prompts answered in the same sweeps."""

import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from layermesh.berths import Berths
from layermesh.coordinator.answer import Answer
from layermesh.coordinator.boarding import Boarding
from layermesh.coordinator.generation import Answering, Limits
from layermesh.coordinator.together import Failed, NewToken, Together
from layermesh.local import LocalModel
from layermesh.reply import Reply
from layermesh.request import Request
from layermesh.shared.errors import LayermeshError
from layermesh.shared.footprint import SequenceSize
from layermesh.shared.frames import SessionId
from layermesh.shared.model.dividing import keeps_state_in_modules

MakeRequest = Callable[[], Request]


@dataclass(frozen=True, slots=True)
class Finished:
    """What became of the prompt at `index`: an `answer`, or the `error` that kept it from getting one."""

    index: int
    answer: Answer | None = None
    error: LayermeshError | None = None


@dataclass(slots=True)
class Progress:
    """How far an AnswerStream has come."""

    num_finished: int = 0
    num_aboard: int = 0
    num_tokens: int = 0


class AnswerStream:
    """The answers to many prompts, each as soon as it is finished; `progress` says how far things are.

    Requests are made, and memory is set aside, as prompts board; `close`, or dropping the stream, gives everything back.
    """

    def __init__(
        self, local: LocalModel, requests: Sequence[MakeRequest], max_sessions: int, check: Callable[[], None]
    ) -> None:
        self.progress = Progress()
        self._finished = _run(local, requests, max_sessions, check, self.progress)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> Iterator[Finished]:
        return self

    def __next__(self) -> Finished:
        return next(self._finished)

    def close(self) -> None:
        """End early and forget the sessions that are aboard."""
        self._finished.close()


@dataclass(frozen=True, slots=True)
class _Sized:
    """A request with the limits and the chunk that it gets alone, so that its answer is the one it gets alone."""

    request: Request
    limits: Limits
    chunk: int

    @property
    def size(self) -> SequenceSize:
        return SequenceSize(len(self.request.prompt_ids) + self.limits.max_new_tokens, self.chunk)


class _Passengers:
    """Those who are aboard, by index, and whoever waits at the head of the queue."""

    def __init__(self, local: LocalModel, requests: Sequence[MakeRequest], progress: Progress) -> None:
        self._local = local
        self._requests = requests
        self._progress = progress
        self._berths = Berths(local)
        self._replies: dict[int, Reply] = {}
        self._sized: dict[int, _Sized] = {}

    def board(self, index: int) -> Answering | None:
        """Return the session of a prompt that there is room for, else None."""
        sized = self._sized.pop(index, None) or self._size(index)
        session = SessionId(uuid.uuid4().hex)
        if not self._berths.take(session, sized.size):
            self._sized[index] = sized
            return None
        reply = Reply(self._local, sized.request, session, sized.limits, sized.chunk, time.monotonic())
        self._replies[index] = reply
        self._progress.num_aboard = len(self._replies)
        return reply.answering

    def note(self, event: NewToken | Failed) -> Finished | None:
        """Return what became of a prompt, if this was its end."""
        if isinstance(event, Failed):
            return self._end(Finished(event.index, error=event.error))
        self._progress.num_tokens += 1
        reply = self._replies[event.index]
        reply.take(event.token_id)
        return None if reply.answer is None else self._end(Finished(event.index, reply.answer))

    def _size(self, index: int) -> _Sized:
        request = self._requests[index]()
        return _Sized(request, *request.fit(self._local.chunk_alone))

    def _end(self, finished: Finished) -> Finished:
        if (reply := self._replies.pop(finished.index, None)) is not None:
            self._berths.leave(reply.answering.session)
        self._progress.num_finished += 1
        self._progress.num_aboard = len(self._replies)
        return finished


def _run(
    local: LocalModel, requests: Sequence[MakeRequest], max_sessions: int, check: Callable[[], None], progress: Progress
) -> Generator[Finished]:
    passengers = _Passengers(local, requests, progress)
    if keeps_state_in_modules(local.definition.model):
        max_sessions = 1
    together = Together(local.line, Boarding(len(requests), max_sessions), passengers.board)
    check()
    with closing(together.generate()) as events:
        for event in events:
            finished = passengers.note(event)
            if finished is not None:
                yield finished
            check()
