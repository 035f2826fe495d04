"""A line that outlives its workers."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from layermesh.coordinator.pipeline import Line, Resumable
from layermesh.coordinator.recovery.decisions import (
    Call,
    Condemn,
    GiveUp,
    Left,
    Lost,
    Passed,
    Rebuild,
    Returned,
    Standing,
    Starved,
    Trouble,
    decide,
)
from layermesh.coordinator.recovery.failover import Failover, Reason
from layermesh.coordinator.recovery.past import Past
from layermesh.shared.errors import BudgetError, BusyError, LayermeshError, MeshError, WorkerLostError, WorkerStarvedError
from layermesh.shared.footprint import SequenceSize
from layermesh.shared.frames import Failure, Frame, Logits, SessionId
from layermesh.shared.problems import WorkerBudgetError

_REASONS: dict[type[Trouble], Reason] = {Lost: "lost", Starved: "starved", Left: "left", Returned: "returned"}


class Surroundings(Protocol):
    """The workers there are, and the making of lines through them."""

    def rebuild(self, order: Rebuild) -> Resumable:
        """Make a line anew, perhaps through nobody. Raises WorkerLostError and WorkerStarvedError for a worker that fails."""
        ...

    def name(self, worker: str) -> str:
        """What its user calls a worker."""
        ...

    def given_bytes(self, worker: str) -> int:
        """How much memory the plan took of a worker."""
        ...

    def successors(self, worker: str) -> tuple[str, ...]:
        """Who runs, since the last `rebuild`, layers that a worker ran before it, or ran those that it runs now."""
        ...

    def await_return(self, workers: Collection[str]) -> None:
        """Begin to look whether workers that were lost answer again; instead of those that were looked for before."""
        ...

    def returned(self) -> frozenset[str]:
        """Those of the awaited that answer again."""
        ...


@dataclass(slots=True)
class _Session:
    size: SequenceSize
    frames: list[Frame] = field(default_factory=list)

    @property
    def past(self) -> Past:
        return Past(self.size, self.frames)


class LastingLine(Line):
    """Passes calls along `line`; where a worker goes away, what it had is computed again elsewhere, and answers go on.

    What is to be done is decided in decisions.py; this carries it out. `tell` is given what a user should know, and `standing`
    is what is known from the making of `line`.
    """

    def __init__(
        self,
        line: Resumable,
        around: Surroundings,
        tell: Callable[[str], None],
        standing: Standing = Standing(),  # noqa: B008 - it is frozen
    ) -> None:
        super().__init__()
        self.current = line
        self._around = around
        self._tell = tell
        self._standing = standing
        self._pasts: dict[SessionId, _Session] = {}
        self._retried: set[Call] = set()
        self._homeless: dict[SessionId, BudgetError] = {}  # for which nobody who is left has room

    @property
    def caps(self) -> Mapping[str, int]:
        """The most bytes of workers, by id, that have turned out to have less memory than they say."""
        return self._standing.caps

    def _reserve(self, session: SessionId, size: SequenceSize) -> None:
        while True:
            try:
                self.current.reserve(session, size)
            except (WorkerLostError, BusyError) as error:
                self._recover_all(trouble(error, self._around.given_bytes), error)
            else:
                self._pasts[session] = _Session(size)
                return

    def _release(self, session: SessionId) -> None:
        self._pasts.pop(session, None)
        self._homeless.pop(session, None)
        self.current.release(session)

    def outcomes(self, frames: Sequence[Frame]) -> Iterator[Logits | Failure]:
        """Run calls and yield what becomes of each; those that a worker took with it are run again.

        They are under way from this call on, unless something has happened to the workers since the last.
        """
        begins = self.current.begins_at_once and not self._has_news(frames)
        return self._outcomes(frames, self.current.outcomes(frames) if begins else None)

    def _has_news(self, frames: Sequence[Frame]) -> bool:
        """Whether something is to be done before calls can run on the line as it is."""
        left = self.current.leaving - self._standing.away
        returned = self._around.returned() & self._standing.awaited
        return bool(left or returned or self._standing.suspects) or any(frame.session in self._homeless for frame in frames)

    def _outcomes(self, frames: Sequence[Frame], under_way: Iterator[Logits | Failure] | None) -> Iterator[Logits | Failure]:
        pending = {Call(frame.session, frame.step): frame for frame in frames}
        if under_way is None:
            yield from self._look_around(pending)
            yield from self._turn_away(pending)
        while pending:
            batch = self._batch(pending)
            outcomes, under_way = under_way or self.current.outcomes(batch), None
            try:
                for outcome in outcomes:
                    call = Call(outcome.session, outcome.step)
                    if isinstance(outcome, Failure) and self._is_worth_another_try(call, outcome.error):
                        raise outcome.error
                    self._note(call, pending.pop(call), outcome)
                    yield outcome
            except MeshError as error:
                calls = {Call(frame.session, frame.step) for frame in batch} & pending.keys()
                yield from self._recover(trouble(error, self._around.given_bytes, calls), error, pending)

    def _batch(self, pending: dict[Call, Frame]) -> list[Frame]:
        """Return what to run next: everything, or one call alone where any of them may have taken a worker down."""
        frames = list(pending.values())
        return frames[:1] if pending.keys() & self._standing.suspects.keys() else frames

    def _note(self, call: Call, frame: Frame, outcome: Logits | Failure) -> None:
        self._standing, _ = decide(self._standing, Passed(call))
        if isinstance(outcome, Logits) and call.session in self._pasts:
            self._pasts[call.session].frames.append(frame)

    def _is_worth_another_try(self, call: Call, error: LayermeshError) -> bool:
        """Whether a call that failed may pass elsewhere; one of which nobody knows why it fails, once."""
        if isinstance(error, WorkerLostError | WorkerStarvedError | BusyError):
            return True
        is_first = call not in self._retried
        self._retried.add(call)
        return is_first and isinstance(error, MeshError)

    def _turn_away(self, pending: dict[Call, Frame]) -> Iterator[Failure]:
        """Fail the calls of sessions for which nobody who is left has room; the others go on."""
        for call in [call for call in pending if call.session in self._homeless]:
            del pending[call]
            yield Failure(call.session, call.step, self._homeless[call.session])

    def _look_around(self, pending: dict[Call, Frame]) -> Iterator[Failure]:
        """Between two sweeps: go on without those who say goodbye, and with those who are back."""
        for worker in sorted(self.current.leaving):
            if worker not in self._standing.away:  # it may have gone with another one
                yield from self._recover(Left(worker), None, pending)
        for worker in self._around.returned() & self._standing.awaited:
            yield from self._recover(Returned(worker), None, pending)

    def _recover_all(self, event: Trouble, error: LayermeshError) -> None:
        for failure in self._recover(event, error, {}):
            raise failure.error

    def _recover(self, event: Trouble, error: LayermeshError | None, pending: dict[Call, Frame]) -> Iterator[Failure]:
        """Do what `event` calls for until there is a line again; yield what fails for good."""
        began, first, why = time.monotonic(), event, "" if error is None else str(error)
        while True:
            self._standing, instructions = decide(self._standing, event)
            for instruction in instructions:
                match instruction:
                    case Condemn(call, workers):
                        if pending.pop(call, None) is not None:
                            yield self._condemn(call, workers)
                    case GiveUp(num_recoveries):
                        raise error or MeshError(f"nothing came back after {num_recoveries} new plans. Ask again.")
                    case Rebuild():
                        try:
                            num_tokens = self._rebuild(instruction)
                        except MeshError as failed:
                            event, error = trouble(failed, self._around.given_bytes), failed
                            self._tell_of(event, str(failed))
                        else:
                            self._report(first, why, num_tokens, time.monotonic() - began)
                            yield from self._turn_away(pending)
                            return
            if not instructions:
                return

    def _rebuild(self, order: Rebuild) -> int:
        """Make a line as `order` says, bring the sessions there, and return how many of their tokens had to be run again."""
        self.current = self._around.rebuild(order)
        self._around.await_return(self._standing.awaited)
        lacking = []
        for session in self._homeless:
            self._pasts.pop(session, None)
        for session, past in self._pasts.items():
            try:
                end = self.current.resume(session, past.past)
            except WorkerBudgetError as error:
                raise WorkerStarvedError(str(error), error.worker_id, error.budget_bytes) from error
            except BudgetError as error:
                self._homeless[session] = error
                continue
            if end is not None:
                lacking.append((past.past, end))
        if lacking:
            self.current.replay(lacking)
        return sum(past.num_tokens for past, _ in lacking)

    def _condemn(self, call: Call, workers: Collection[str]) -> Failure:
        names = " and ".join(sorted(self._around.name(worker) for worker in workers))
        error = MeshError(
            f"{names} went down one after the other with this answer, at the same place. It is not tried on another worker; "
            "look at their screens for what ended them. The mesh goes on."
        )
        self._pasts.pop(call.session, None)
        return Failure(call.session, call.step, error)

    def _report(self, event: Trouble, why: str, num_tokens: int, seconds: float) -> None:
        passed = max((past.past.num_tokens for past in self._pasts.values()), default=0)
        moved_to = self._around.successors(event.worker) if event.worker else ()
        self._tell_of(event, why, passed, moved_to, num_tokens, seconds)

    def _tell_of(
        self,
        event: Trouble,
        why: str,
        passed: int = 0,
        moved_to: tuple[str, ...] = (),
        num_tokens: int = 0,
        seconds: float = 0.0,
    ) -> None:
        """Note what has happened, and say so."""
        reason = _REASONS[type(event)] if event.worker else "unknown"
        name = self._around.name(event.worker) if event.worker else ""
        failover = Failover(name, reason, passed, moved_to, num_tokens, seconds, why)
        self.failovers.append(failover)
        self._tell(str(failover))


def trouble(error: LayermeshError, given_bytes: Callable[[str], int], under_way: Collection[Call] = ()) -> Trouble:
    """Return the event that `error` is, with calls under way; `given_bytes` says how much memory a worker was to take."""
    if isinstance(error, WorkerStarvedError):
        given = given_bytes(error.worker)
        return Starved(error.worker, given if error.budget_bytes is None else min(given, error.budget_bytes))
    if isinstance(error, WorkerLostError):
        return Lost(error.worker, frozenset(under_way), error.crashed, error.returns)
    return Lost("", frozenset(under_way))
