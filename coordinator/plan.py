"""What will run where, and how fast that should be."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from layermesh.shared.profile import Profile
from layermesh.shared.residency import Residency
from layermesh.shared.spans import LayerSpan


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One worker's part: its span, what stays in memory there, and what it reads in every sweep."""

    worker: str
    span: LayerSpan
    residency: Residency

    def to_dict(self) -> dict[str, Any]:
        """Return it in the form of `--json`."""
        return {
            "worker": self.worker,
            "start": self.span.start,
            "end": self.span.end,
            "resident_bytes": self.residency.resident_bytes,
            "streamed_bytes": self.residency.streamed_bytes,
        }


@dataclass(frozen=True, slots=True)
class Prediction:
    """How long one token should take, and what it waits for: "disk" or "compute"."""

    seconds_per_token: float
    bottleneck: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The stages of a model in order; `prediction` is None where nothing was measured."""

    stages: tuple[StagePlan, ...]
    prediction: Prediction | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it in the form of `--json`."""
        predicted = self.prediction
        return {
            "stages": [stage.to_dict() for stage in self.stages],
            "predicted_seconds_per_token": predicted and predicted.seconds_per_token,
            "bottleneck": predicted and predicted.bottleneck,
        }


def predict(stages: Sequence[Residency], profile: Profile) -> Prediction:
    """Estimate one token of decoding: reading runs beside computing, and the slower of the two sets the pace."""
    reading = sum(stage.streamed_bytes for stage in stages) * profile.load_seconds_per_byte
    blocks = [block for stage in stages for block in stage.blocks]
    computing = sum(block.loaded_bytes for block in blocks) * profile.compute_seconds_per_byte
    computing += len(blocks) * profile.block_seconds
    return Prediction(max(reading, computing), "disk" if reading > computing else "compute")
