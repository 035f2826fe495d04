"""What a user gets: tokens as they are made, then the whole answer with its figures."""

from dataclasses import dataclass

from layermesh.coordinator.generation import FinishReason
from layermesh.coordinator.plan import Plan
from layermesh.coordinator.record import Record
from layermesh.coordinator.recovery.failover import Failover


@dataclass(frozen=True)
class Memory(Record):
    """Most bytes that weights, caches and buffers occupied since the model was opened, and what they were allowed.

    A budget is None where nobody named one.
    """

    device_peak_bytes: int
    host_peak_bytes: int
    device_budget_bytes: int | None
    host_budget_bytes: int | None


@dataclass(frozen=True)
class StreamFigures(Record):
    """What was read from disk for one answer, in how many passes through the layers.

    `disk_seconds` is the time during which a read was under way; a long prompt takes several sweeps, each token after the
    first takes one.
    """

    disk_bytes: int
    disk_seconds: float
    sweeps: int
    bytes_per_token: float

    @property
    def bytes_per_second(self) -> float:
        """The rate of the disk while it was read."""
        return self.disk_bytes / self.disk_seconds if self.disk_seconds else 0.0


@dataclass(frozen=True)
class HopFigures(Record):
    """Medians over the last tokens at one worker: seconds in its layers, and in its queue before that."""

    worker: str
    computed_seconds: float
    waited_seconds: float


@dataclass(frozen=True)
class Timings(Record):
    """How long things took; `decode_tokens_per_second` leaves out the first token, None where there was no other.

    `hops` are the workers of the route, in order; `network_seconds` is the median of what a token spends between machines, None
    where this one was alone.
    """

    load_seconds: float
    time_to_first_token_seconds: float
    decode_seconds: float
    decode_tokens_per_second: float | None
    total_seconds: float
    hops: tuple[HopFigures, ...] = ()
    network_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """One new token; `text` is what became certain with it, often empty in the middle of a character."""

    id: int
    text: str


@dataclass(frozen=True)
class Answer(Record):
    """A finished answer. `text` has neither stop strings nor special tokens; `token_ids` has every token made.

    `failovers` has what happened to workers meanwhile.
    """

    text: str
    token_ids: list[int]
    prompt_tokens: int
    finish_reason: FinishReason
    seed: int
    model: str
    plan: Plan
    memory: Memory
    stream: StreamFigures
    timings: Timings
    failovers: tuple[Failover, ...] = ()
