"""What a user gets: tokens as they are made, then the whole answer with its figures."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from layermesh.coordinator.generation import FinishReason
from layermesh.coordinator.plan import Plan


class Record:
    """Figures that can be read by attribute, by key, and as a dictionary, under the same names as in `--json`."""

    def __getitem__(self, name: str) -> Any:
        if name not in self.keys():
            raise KeyError(name)
        return getattr(self, name)

    def keys(self) -> list[str]:
        """The names of the figures, so that `dict(record)` works."""
        return [field.name for field in fields(self)] if is_dataclass(self) else []

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())


@dataclass(frozen=True)
class Memory(Record):
    """Most bytes that weights, caches and buffers occupied, and what they were allowed (None: not asked of this device)."""

    device_peak_bytes: int
    host_peak_bytes: int
    device_budget_bytes: int | None
    host_budget_bytes: int | None


@dataclass(frozen=True)
class StreamFigures(Record):
    """What was read from disk for one answer; `disk_seconds` is the time during which a read was under way."""

    disk_bytes: int
    disk_seconds: float
    sweeps: int
    bytes_per_token: float

    @property
    def bytes_per_second(self) -> float:
        """The rate of the disk while it was read."""
        return self.disk_bytes / self.disk_seconds if self.disk_seconds else 0.0


@dataclass(frozen=True)
class Timings(Record):
    """How long things took; `decode_tokens_per_second` leaves out the first token, None where there was no other."""

    load_seconds: float
    time_to_first_token_seconds: float
    decode_seconds: float
    decode_tokens_per_second: float | None
    total_seconds: float


@dataclass(frozen=True, slots=True)
class Token:
    """One new token; `text` is what became certain with it, often empty in the middle of a character."""

    id: int
    text: str


@dataclass(frozen=True)
class Answer:
    """A finished answer. `text` has neither stop strings nor special tokens; `token_ids` has every token made."""

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

    def to_dict(self) -> dict[str, Any]:
        """Return it in the form of `--json`."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return own | {
            "plan": self.plan.to_dict(),
            "memory": dict(self.memory),
            "stream": dict(self.stream),
            "timings": dict(self.timings),
        }
