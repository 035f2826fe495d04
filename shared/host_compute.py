"""Which of the blocks that stay on the host are computed with there, instead of crossing the bus to the device."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from layermesh.shared.model.blocks import Block
from layermesh.shared.residency import Residency, spread

SHARING_TOKENS: Final = 4  # as many at once cost a processor about what one does: it waits for the weights
CROSSING_SECONDS: Final = 1e-4  # to bring a layer's arguments to the host and its result back


@dataclass(frozen=True, slots=True)
class HostRates:
    """What was measured of a bus and of the processor beside it.

    `host_bytes_per_second` is the rate at which the processor goes through the weights of a layer with one token; None as long
    as nobody knows.
    """

    bus_bytes_per_second: float
    host_bytes_per_second: float | None = None

    def __post_init__(self) -> None:
        if self.bus_bytes_per_second <= 0 or (self.host_bytes_per_second is not None and self.host_bytes_per_second <= 0):
            raise ValueError(f"rates are above zero, not {self.bus_bytes_per_second} and {self.host_bytes_per_second}")


def choose_host_computed(residency: Residency, able: Collection[str], rates: HostRates, num_tokens: int) -> frozenset[str]:
    """Return the names of the blocks to compute with on the host in a sweep of `num_tokens`, all sessions together.

    Blocks are copied while others are computed with on the host, so the best division is the one in which the two take
    equally long; those computed there are spread evenly, so that they really alternate. Only blocks `able` to be computed with
    there count. Where the processor's rate is not known yet, one block goes there to learn it.
    """
    blocks = [block for block in residency.blocks if block.name in residency.on_host and block.name in able]
    if rates.host_bytes_per_second is None:
        return frozenset(block.name for block in blocks[:1] if num_tokens <= SHARING_TOKENS)
    ordered = spread(blocks)
    seconds = _seconds_by_number(
        ordered, residency.bus_bytes, rates.bus_bytes_per_second, rates.host_bytes_per_second, num_tokens
    )
    best = min(range(len(seconds)), key=seconds.__getitem__)
    return frozenset(block.name for block in ordered[:best])


def _seconds_by_number(
    blocks: Sequence[Block], bus_bytes: int, bus_rate: float, host_rate: float, num_tokens: int
) -> list[float]:
    """How long a sweep takes with none of `blocks` computed with on the host, with the first, the first two, and so on."""
    slower = max(num_tokens / SHARING_TOKENS, 1.0)
    sizes = accumulate((block.loaded_bytes for block in blocks), initial=0)
    return [
        max((bus_bytes - size) / bus_rate, size * slower / host_rate + number * CROSSING_SECONDS)
        for number, size in enumerate(sizes)
    ]
