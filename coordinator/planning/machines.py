"""Machines that may take part in a mesh, and the links between them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from layermesh.shared.machine_profile import MachineProfile

HANDLING_SECONDS: Final = 1.2e-3  # of a frame, beyond an echo's: weights have driven out of the caches what handles it


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine, with what it measured of itself.

    `layer_seconds` is what each layer costs there however small it is, and `slowdown` by how much the weights take longer than
    their rate says, as real runs of this model have shown. The coordinator's own machine needs no hop when it comes last.
    """

    name: str
    profile: MachineProfile
    layer_seconds: float = 0.0
    slowdown: float = 1.0
    is_coordinator: bool = False

    def __post_init__(self) -> None:
        if self.layer_seconds < 0 or self.slowdown <= 0:
            raise ValueError(f"times of a machine are positive, not {self.layer_seconds} s a layer and {self.slowdown} times")

    def weight_rate(self, form: str) -> float:
        """Return the bytes of weights in `form` that one token goes through in a second.

        Where it was not measured, the slowest form that was stands in; where none was, the disk does.
        """
        rates = {known: rate for known, rate in self.profile.weight_rates.items() if rate > 0}
        measured = rates.get(form, min(rates.values(), default=self.profile.disk_rate))
        return measured / self.slowdown


@dataclass(frozen=True, slots=True)
class Link:
    """One way from a machine to another: what a message costs whatever its size, and the rate of what it carries."""

    seconds: float
    bytes_per_second: float

    def __post_init__(self) -> None:
        if self.seconds < 0 or self.bytes_per_second <= 0:
            raise ValueError(f"a link takes time and has a rate, not {self.seconds} s and {self.bytes_per_second} bytes/s")

    def seconds_for(self, num_bytes: int) -> float:
        """How long a message of `num_bytes` is on its way."""
        return self.seconds + num_bytes / self.bytes_per_second


@dataclass(frozen=True, slots=True)
class Links:
    """The ways that frames may take: `near` from each machine to the coordinator and back, `measured` between two of them."""

    near: Mapping[str, Link]
    measured: Mapping[tuple[str, str], Link] = field(default_factory=dict)

    def with_coordinator(self, name: str) -> Link:
        """Return the link of a machine with the coordinator; ValueError where nobody measured it."""
        if name not in self.near:
            raise ValueError(f"no link between the coordinator and {name!r}")
        return self.near[name]

    def between(self, source: str, target: str) -> Link:
        """Return the link from one machine to another: measured, or as slow as the slower of theirs with the coordinator."""
        if (source, target) in self.measured:
            return self.measured[source, target]
        ends = self.with_coordinator(source), self.with_coordinator(target)
        return Link(max(end.seconds for end in ends), min(end.bytes_per_second for end in ends))
