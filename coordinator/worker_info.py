"""What a coordinator knows of a worker."""

from dataclasses import dataclass

from layermesh.shared.machine_profile import MachineProfile
from layermesh.shared.spans import LayerSpan


@dataclass(frozen=True, slots=True)
class RunningInfo:
    """A span that a worker has ready; `seconds_per_token` is 0 as long as nothing went through it."""

    model: str
    span: LayerSpan
    resident_bytes: int
    streamed_bytes: int
    seconds_per_token: float = 0.0
    num_sessions: int = 0


@dataclass(frozen=True, slots=True)
class StoredInfo:
    """What a worker has stored of a model."""

    model: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker as it described itself `last_seen_seconds` ago, at `address` (HOST:PORT).

    `problem` says why it cannot be used and what to do about it. Of one that never answered there is no profile, and the name
    may be its address. All texts are the worker's own words.
    """

    worker_id: str
    name: str
    address: str
    version: int = 0
    software: str = ""
    device: str = ""
    profile: MachineProfile | None = None
    running: tuple[RunningInfo, ...] = ()
    stored: tuple[StoredInfo, ...] = ()
    last_seen_seconds: float | None = None
    problem: str | None = None

    @property
    def stored_bytes(self) -> int:
        """Bytes of all models stored there."""
        return sum(each.num_bytes for each in self.stored)
