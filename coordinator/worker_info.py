"""What a coordinator knows of a worker."""

from dataclasses import dataclass

from layermesh.protos import mesh_pb2 as pb
from layermesh.shared.machine_profile import MachineProfile
from layermesh.shared.profile_wire import profile_from_proto
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


def read_info(name: str, address: str, told: pb.DescribeResponse) -> WorkerInfo:
    """Return what a worker just now said of itself, under the name by which it is known here."""
    names = {model.fingerprint: model.name for model in told.stored}
    return WorkerInfo(
        worker_id=told.worker_id,
        name=name,
        address=address,
        version=told.version,
        software=told.software,
        device=told.device,
        profile=profile_from_proto(told.profile),
        running=tuple(_running(one, names.get(one.key.fingerprint, one.model)) for one in told.running),
        stored=tuple(StoredInfo(model.name, model.num_bytes) for model in told.stored),
        last_seen_seconds=0.0,
    )


def _running(running: pb.RunningSpan, model: str) -> RunningInfo:
    return RunningInfo(
        model,
        LayerSpan(running.key.start, running.key.end),
        running.resident_bytes,
        running.streamed_bytes,
        running.seconds_per_token,
        running.num_sessions,
    )
