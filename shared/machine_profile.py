"""What a machine of a mesh has, and how fast it is, as it measured it itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class MachineProfile:
    """Budgets in bytes, rates per second.

    `device_bytes` is what weights, caches and buffers may take where layers are computed; `host_bytes` what they may take
    beside a card, 0 where the device is the host, as `bus_rate` is then. `disk_rate` is of bytes read past the page cache.
    `weight_rates` has, by form ("float32", "bfloat16", "float16", "int4", "int8"), the bytes of weights that one token goes
    through in a second; `flops` are those of large matrix products. `compute_fingerprint` is the same where results are, to the
    bit.
    """

    device_bytes: int
    host_bytes: int
    bus_rate: float
    disk_rate: float
    weight_rates: Mapping[str, float] = field(default_factory=dict)
    flops: float = 0.0
    compute_fingerprint: str = ""

    def __post_init__(self) -> None:
        if min(self.device_bytes, self.host_bytes) < 0 or self.disk_rate <= 0 or self.bus_rate < 0:
            raise ValueError(f"budgets and rates of a machine are positive, not {self}")
