"""What will run where, and how fast that should be."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from layermesh.coordinator.record import Record
from layermesh.shared.profile import Profile
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


@dataclass(frozen=True, slots=True)
class Prediction:
    """How long one token should take, and what it waits for: "disk" or "compute"."""

    seconds_per_token: float
    bottleneck: str


@dataclass(frozen=True)
class Plan(Record):
    """The stages of a model in order; how long a token should take, and what for, is None where nothing was measured."""

    stages: tuple[StagePlan, ...]
    predicted_seconds_per_token: float | None = None
    bottleneck: str | None = None


def predict(stages: Sequence[Residency], profile: Profile) -> Prediction:
    """Estimate one token of decoding: reading runs beside computing, and the slower of the two sets the pace."""
    reading = sum(stage.streamed_bytes for stage in stages) * profile.load_seconds_per_byte
    blocks = [block for stage in stages for block in stage.blocks]
    computing = sum(block.loaded_bytes for block in blocks) * profile.compute_seconds_per_byte
    slower = max(reading, computing) + profile.outside_seconds
    return Prediction(slower, "disk" if reading > computing else "compute")
