"""Where a block's tensors lie once it has been read: in host memory, or copied to a GPU."""

from collections.abc import Mapping
from typing import Protocol

import torch

from layermesh.shared.model.blocks import Block
from layermesh.worker.buffers import Buffer, block_tensors


class Placement(Protocol):
    """Makes the tensors of a loaded block available to the device that computes."""

    def tensors(self, block: Block, buffer: Buffer, *, stays: bool) -> Mapping[str, torch.Tensor]:
        """Return the tensors of `block`, which lies in `buffer`; `stays` tells whether it is resident."""
        ...

    def drop(self, name: str) -> None:
        """Let go of the resident block `name`."""
        ...


class HostPlacement:
    """Computes straight from the buffers."""

    def __init__(self) -> None:
        self._resident: dict[str, Mapping[str, torch.Tensor]] = {}

    def tensors(self, block: Block, buffer: Buffer, *, stays: bool) -> Mapping[str, torch.Tensor]:
        """Return views of `buffer`; those of resident blocks are made once."""
        if not stays:
            return block_tensors(block, buffer.bytes)
        if block.name not in self._resident:
            self._resident[block.name] = block_tensors(block, buffer.bytes)
        return self._resident[block.name]

    def drop(self, name: str) -> None:
        """Let go of the resident block `name`."""
        self._resident.pop(name, None)


class DevicePlacement:
    """Copies each block to `device`, resident ones once.

    A streamed block goes over the bus in every sweep, into memory that the previous one has left.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._resident: dict[str, Mapping[str, torch.Tensor]] = {}

    def tensors(self, block: Block, buffer: Buffer, *, stays: bool) -> Mapping[str, torch.Tensor]:
        """Return the block's tensors on the device."""
        if block.name in self._resident:
            return self._resident[block.name]
        tensors = block_tensors(block, buffer.bytes[: block.loaded_bytes].to(self._device))
        if stays:
            self._resident[block.name] = tensors
        return tensors

    def drop(self, name: str) -> None:
        """Let go of the resident block `name`."""
        self._resident.pop(name, None)
