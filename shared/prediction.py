"""How long a token should take on one machine."""

from collections.abc import Sequence
from dataclasses import dataclass

from layermesh.shared.profile import Profile
from layermesh.shared.residency import Residency


@dataclass(frozen=True, slots=True)
class Prediction:
    """How long one token should take, and what it waits for: "disk" or "compute"."""

    seconds_per_token: float
    bottleneck: str


def predict(stages: Sequence[Residency], profile: Profile) -> Prediction:
    """Estimate one token of decoding: reading runs beside computing, and the slower of the two sets the pace."""
    reading = sum(stage.streamed_bytes for stage in stages) * profile.load_seconds_per_byte
    blocks = [block for stage in stages for block in stage.blocks]
    computing = sum(block.loaded_bytes for block in blocks) * profile.compute_seconds_per_byte
    slower = max(reading, computing) + profile.outside_seconds
    return Prediction(slower, "disk" if reading > computing else "compute")
