"""Where a block's tensors lie once it has been read: in host memory, or copied to a GPU."""

from collections.abc import Mapping
from typing import Protocol

import torch

from layermesh.shared.model.blocks import Block
from layermesh.worker.buffers import Buffer, block_tensors


class Placement(Protocol):
    """Makes the tensors of a loaded block available to the device that computes."""

    def tensors(self, block: Block, buffer: Buffer) -> Mapping[str, torch.Tensor]:
        """Return the tensors of `block`, which lies in `buffer`, by key."""
        ...


class HostPlacement:
    """Computes straight from the buffers."""

    def tensors(self, block: Block, buffer: Buffer) -> Mapping[str, torch.Tensor]:
        """Return views of `buffer`, which keep its memory."""
        return block_tensors(block, buffer.bytes)


class DevicePlacement:
    """Copies each block to `device`, into memory that the previous one has left; the buffer is free for others then."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def tensors(self, block: Block, buffer: Buffer) -> Mapping[str, torch.Tensor]:
        """Return the block's tensors on the device."""
        return block_tensors(block, buffer.bytes[: block.loaded_bytes].to(self._device))
