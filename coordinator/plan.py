"""What will run where, and how fast that should be."""

from dataclasses import dataclass
from typing import Self

from layermesh.coordinator.record import Record
from layermesh.shared.residency import Residency
from layermesh.shared.spans import LayerSpan


@dataclass(frozen=True)
class StagePlan(Record):
    """One worker's part: layers `[start, end)`, what stays in memory there, and what it reads in every sweep."""

    worker: str
    start: int
    end: int
    resident_bytes: int
    streamed_bytes: int

    @classmethod
    def of(cls, worker: str, span: LayerSpan, residency: Residency) -> Self:
        """Return the part of `worker`, which runs `span` with what `residency` says."""
        return cls(worker, span.start, span.end, residency.resident_bytes, residency.streamed_bytes)


@dataclass(frozen=True)
class Plan(Record):
    """The stages of a model in order; how long a token should take, and what for, is None where nothing was measured."""

    stages: tuple[StagePlan, ...]
    predicted_seconds_per_token: float | None = None
    bottleneck: str | None = None
