"""What a machine of a mesh has, and how fast it is, as it measured it itself."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Self

_MOST_BYTES: Final = 1 << 50
_MOST_PER_SECOND: Final = 1e18
_MOST_FORMS: Final = 32
_FORM: Final = re.compile(r"[a-z0-9_]{1,32}")
_FINGERPRINT_CHARS: Final = 400


@dataclass(frozen=True, slots=True)
class MachineProfile:
    """Budgets in bytes, rates per second.

    `device_bytes` is what weights, caches and buffers may take where layers are computed; `host_bytes` what they may take
    beside a card, 0 where the device is the host, as `bus_rate` is then. `disk_rate` is of bytes read past the page cache.
    `weight_rates` has, by form ("float32", "bfloat16", "float16", "int4", "int8"), the bytes of weights that one token goes
    through in a second; `flops` are those of large matrix products. `compute_fingerprint` is the same where results are, to the
    bit. `measured_at` is in seconds since 1970 by that machine's clock, 0 where nobody noted it.
    """

    device_bytes: int
    host_bytes: int
    bus_rate: float
    disk_rate: float
    weight_rates: Mapping[str, float] = field(default_factory=dict)
    flops: float = 0.0
    compute_fingerprint: str = ""
    measured_at: float = 0.0

    def __post_init__(self) -> None:
        if min(self.device_bytes, self.host_bytes) < 0 or self.disk_rate <= 0 or self.bus_rate < 0:
            raise ValueError(f"budgets and rates of a machine are positive, not {self}")

    def age(self, now: float) -> float:
        """Return how many seconds before `now` this was measured; negative where a clock was put back since."""
        return now - self.measured_at

    def checked(self) -> Self:
        """Return it as it is if it can be true of a machine; it may come from anywhere.

        Raises ValueError for numbers that are infinite, none at all or beyond any machine, and for names that are none.
        """
        sizes = (self.device_bytes, self.host_bytes)
        rates = (self.disk_rate, *self.weight_rates.values())
        others = (self.bus_rate, self.flops, self.measured_at)
        if not all(0 <= size <= _MOST_BYTES for size in sizes):
            raise ValueError(f"no machine has {max(sizes)} bytes of memory")
        if not all(math.isfinite(rate) and 0 < rate <= _MOST_PER_SECOND for rate in rates):
            raise ValueError(f"no machine has rates of {rates}")
        if not all(math.isfinite(other) and 0 <= other <= _MOST_PER_SECOND for other in others):
            raise ValueError(f"no machine has rates or times of {others}")
        if len(self.weight_rates) > _MOST_FORMS or not all(_FORM.fullmatch(form) for form in self.weight_rates):
            raise ValueError("the forms of weights are a few short names")
        if len(self.compute_fingerprint) > _FINGERPRINT_CHARS or not self.compute_fingerprint.isprintable():
            raise ValueError("a compute fingerprint is a line of text")
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return it in plain types, under the names of its fields."""
        return {**{each.name: getattr(self, each.name) for each in fields(self)}, "weight_rates": dict(self.weight_rates)}

    @classmethod
    def parse(cls, raw: object) -> Self:
        """Read what `to_dict` returned. Raises ValueError for anything else."""
        if not isinstance(raw, Mapping) or not isinstance(raw.get("weight_rates"), Mapping):
            raise ValueError(f"a profile is a mapping, not {type(raw).__name__}")
        try:
            return cls(
                device_bytes=int(raw["device_bytes"]),
                host_bytes=int(raw["host_bytes"]),
                bus_rate=float(raw["bus_rate"]),
                disk_rate=float(raw["disk_rate"]),
                weight_rates={str(form): float(rate) for form, rate in raw["weight_rates"].items()},
                flops=float(raw["flops"]),
                compute_fingerprint=str(raw["compute_fingerprint"]),
                measured_at=float(raw["measured_at"]),
            ).checked()
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"this is no profile of a machine: {error!r}") from error
