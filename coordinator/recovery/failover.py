"""What happened to the machines while an answer was made, as its user is told."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from layermesh.coordinator.record import Record
from layermesh.shared.units import format_seconds

Reason = Literal["lost", "left", "starved", "returned", "unknown"]

_WHAT = {
    "lost": "went away",
    "left": "is leaving",
    "starved": "has too little memory for its layers",
    "returned": "is back",
    "unknown": "something went wrong between the machines",
}


@dataclass(frozen=True)
class Failover(Record):
    """One change of machines in the middle of an answer.

    `token` counts those that had passed, the prompt's included; `moved_to` has who runs the worker's layers now, or which
    machines it takes layers from, and `seconds` is how long it took until things went on.
    """

    worker: str
    reason: Reason
    token: int
    moved_to: tuple[str, ...]
    replayed_tokens: int
    seconds: float
    why: str

    def __str__(self) -> str:
        at = f" at token {self.token}" if self.token else ""
        parts = [f"{self.worker} {_WHAT[self.reason]}{at}" if self.worker else f"{_WHAT[self.reason]}{at} ({self.why})"]
        if self.moved_to and self.reason == "returned":
            parts.append(f"it takes layers from {_and(self.moved_to)}")
        elif self.moved_to:
            parts.append(f"its layers moved to {_and(self.moved_to)}")
        if self.replayed_tokens:
            parts.append(f"replayed {self.replayed_tokens} tokens in {format_seconds(self.seconds)}")
        return "; ".join(parts)


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
