"""What to do when something happens to a worker: events in, instructions out, and nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from layermesh.shared.frames import SessionId

MOST_BARREN: Final = 5  # recoveries in a row after which no call came back, but for those from first losses
MOST_LOSSES: Final = 3  # of one worker, after which this answer does without it
SHRINK: Final = 0.8  # of what was too much for a worker


class Call(NamedTuple):
    """One call of a session, of which there is only one in each step."""

    session: SessionId
    step: int


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker, by id, does not take part any more, or cannot be told which one; these calls were under way.

    `crashed` says that its process ended, rather than that it was silent or slow; `returns` that it may be used again.
    """

    worker: str
    under_way: frozenset[Call] = frozenset()
    crashed: bool = False
    returns: bool = True


@dataclass(frozen=True, slots=True)
class Starved:
    """What a worker was given, `num_bytes` of memory as planned, is more than it has."""

    worker: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Left:
    """A worker says goodbye."""

    worker: str


@dataclass(frozen=True, slots=True)
class Returned:
    """A worker that was lost answers again."""

    worker: str


@dataclass(frozen=True, slots=True)
class Passed:
    """A call has come back."""

    call: Call


Trouble = Lost | Starved | Left | Returned  # what happens to a worker
Event = Trouble | Passed


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Make a new plan without some workers, give no other more bytes than its cap, and compute again what was lost."""

    epoch: int = 0
    without: frozenset[str] = frozenset()
    caps: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Condemn:
    """Fail a session: workers went down with the same call of it, and with nothing else."""

    call: Call
    workers: frozenset[str]


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Nothing has come back for so many recoveries that there is no point in another one."""

    num_recoveries: int


Instruction = Rebuild | Condemn | GiveUp


@dataclass(frozen=True, slots=True)
class Standing:
    """What is remembered from one event to the next."""

    epoch: int = 0
    away: frozenset[str] = frozenset()
    losses: Mapping[str, int] = field(default_factory=dict)
    caps: Mapping[str, int] = field(default_factory=dict)
    suspects: Mapping[Call, frozenset[str]] = field(default_factory=dict)
    num_barren: int = 0

    @property
    def awaited(self) -> frozenset[str]:
        """Workers that are used again once they answer."""
        return frozenset(worker for worker in self.away if self.losses.get(worker, 0) < MOST_LOSSES)

    def rebuild(self) -> Rebuild:
        """Return the instruction to plan as things stand."""
        return Rebuild(self.epoch, self.away, self.caps)


def decide(standing: Standing, event: Event) -> tuple[Standing, tuple[Instruction, ...]]:
    """Return how things stand after `event`, and what is to be done, in order."""
    match event:
        case Passed(call):
            if call not in standing.suspects and not standing.num_barren:  # nearly always
                return standing, ()
            suspects = {known: workers for known, workers in standing.suspects.items() if known != call}
            return replace(standing, suspects=suspects, num_barren=0), ()
        case Lost():
            return _lose(standing, event)
        case Starved(worker, num_bytes):
            cap = min(standing.caps.get(worker, num_bytes), num_bytes)
            return _rebuild(replace(standing, caps={**standing.caps, worker: int(cap * SHRINK)}))
        case Left(worker):
            return _rebuild(replace(standing, away=standing.away | {worker}), is_first=worker not in standing.away)
        case Returned(worker):
            if worker not in standing.awaited:
                return standing, ()
            return _rebuild(replace(standing, away=standing.away - {worker}))


def _lose(standing: Standing, event: Lost) -> tuple[Standing, tuple[Instruction, ...]]:
    away, losses = standing.away, dict(standing.losses)
    is_first = bool(event.worker) and event.worker not in losses
    if event.worker:
        away |= {event.worker}
        losses[event.worker] = losses.get(event.worker, 0) + 1 if event.returns else MOST_LOSSES
    suspects = dict(standing.suspects)
    if event.crashed:
        for call in event.under_way:
            suspects[call] = suspects.get(call, frozenset()) | {event.worker}
    condemned = [Condemn(call, suspects.pop(call)) for call in event.under_way if _is_guilty(call, event, suspects)]
    standing, instructions = _rebuild(replace(standing, away=away, losses=losses, suspects=suspects), is_first=is_first)
    return standing, (*condemned, *instructions)


def _is_guilty(call: Call, event: Lost, suspects: Mapping[Call, frozenset[str]]) -> bool:
    """Whether two workers have gone down with a call, the second one with no other under way."""
    return event.crashed and len(event.under_way) == 1 and len(suspects.get(call, ())) > 1


def _rebuild(standing: Standing, *, is_first: bool = False) -> tuple[Standing, tuple[Instruction, ...]]:
    """Go on with a new plan, unless that is getting nowhere; of first losses there are only as many as workers."""
    standing = replace(standing, epoch=standing.epoch + 1, num_barren=standing.num_barren + (not is_first))
    if standing.num_barren > MOST_BARREN:
        return standing, (GiveUp(MOST_BARREN),)
    return standing, (standing.rebuild(),)
