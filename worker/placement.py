"""Where a block's tensors lie while they are computed with."""

from typing import Protocol

import torch

from layermesh.shared.model.blocks import Block
from layermesh.shared.residency import Residency
from layermesh.worker.buffers import Buffer, LoadedTensors


class Placement(Protocol):
    """Makes loaded blocks available to the device that computes."""

    def buffer(self, num_bytes: int) -> Buffer:
        """Return memory that a block can be read into."""
        ...

    def keep(self, block: Block, buffer: Buffer) -> LoadedTensors:
        """Return the tensors of `block`, which lies in `buffer`, for good."""
        ...

    def lend(self, block: Block, buffer: Buffer) -> LoadedTensors:
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

    def buffer(self, num_bytes: int) -> Buffer:
        """Return ordinary memory."""
        return Buffer(num_bytes)

    def keep(self, block: Block, buffer: Buffer) -> LoadedTensors:
        """Return views of `buffer`, which keep its memory."""
        return buffer.tensors(block)

    def lend(self, block: Block, buffer: Buffer) -> LoadedTensors:
        """Return views of `buffer`."""
        return buffer.tensors(block)

    def take_back(self, block: Block) -> None:
        """Do nothing: whoever computes here is done when it returns."""

    def close(self) -> None:
        """Do nothing: there is no other memory than the buffers."""


def place_on(device: torch.device, residency: Residency) -> Placement:
    """Return the placement for what `residency` streams to `device`."""
    if device.type == "cpu":
        return HostPlacement()
    from layermesh.worker.cuda import DevicePlacement

    return DevicePlacement(device, residency.num_slots, residency.slot_bytes)
