"""Where a block's tensors lie while they are computed with."""

from typing import Protocol

import torch

from layermesh.shared.model.blocks import Block
from layermesh.shared.residency import Residency
from layermesh.worker.buffers import BlockMemory, Buffer, LoadedTensors


class Placement(Protocol):
    """Makes loaded blocks available to the device that computes."""

    @property
    def keeps_apart(self) -> bool:
        """Whether what is kept lies elsewhere than in the buffer it came in, which is then free for another block."""
        ...

    def buffer(self, num_bytes: int) -> Buffer:
        """Return memory that a block can be read into."""
        ...

    def keep(self, block: Block, buffer: BlockMemory) -> LoadedTensors:
        """Return the tensors of `block`, which lies in `buffer`, for good."""
        ...

    def prepare(self, block: Block, buffer: BlockMemory) -> None:
        """Begin with what `lend` will take for `block`, which lies in `buffer`, if there is room."""
        ...

    def lend(self, block: Block, buffer: BlockMemory) -> LoadedTensors:
        """Return the tensors of `block`, which lies in `buffer`, until `take_back`."""
        ...

    def take_back(self, block: Block) -> None:
        """Note that everything that needs what was lent of `block` has been set off."""
        ...

    def close(self) -> None:
        """Let go of all memory."""
        ...


class HostPlacement:
    """Computes straight from the buffers."""

    keeps_apart = False

    def buffer(self, num_bytes: int) -> Buffer:
        """Return ordinary memory."""
        return Buffer(num_bytes)

    def keep(self, block: Block, buffer: BlockMemory) -> LoadedTensors:
        """Return views of `buffer`, which keep its memory."""
        return buffer.tensors(block)

    def prepare(self, block: Block, buffer: BlockMemory) -> None:
        """Do nothing: what was read is ready."""

    def lend(self, block: Block, buffer: BlockMemory) -> LoadedTensors:
        """Return views of `buffer`."""
        return buffer.tensors(block)

    def take_back(self, block: Block) -> None:
        """Do nothing: whoever computes here is done when it returns."""

    def close(self) -> None:
        """Do nothing: there is no other memory than the buffers."""


def bus_rate(device: torch.device, budget_bytes: int) -> float | None:
    """Return the bytes per second that reach `device`, measured within the budget; None if its memory is the host's."""
    if device.type == "cpu":
        return None
    from layermesh.worker.bus import MEASURED_BYTES, measure_bus
    from layermesh.worker.card import CudaCard

    card = CudaCard(device)
    rate = measure_bus(card, max(min(MEASURED_BYTES, budget_bytes // 4), 1))
    card.give_back()
    return rate


def place_on(device: torch.device, residency: Residency) -> Placement:
    """Return the placement for what `residency` streams to `device`."""
    if device.type == "cpu":
        return HostPlacement()
    from layermesh.worker.card import CudaCard
    from layermesh.worker.cuda import DevicePlacement

    return DevicePlacement(CudaCard(device), residency.num_slots, residency.slot_bytes)
