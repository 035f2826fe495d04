"""Memory for weights, taken from the system and given back to it whole."""

import mmap
from functools import cached_property
from typing import Final

import torch
from torch import nn

from layermesh.shared.model.blocks import Block

_HUGE_BYTES: Final = 1 << 22


class LoadedTensors(dict[str, torch.Tensor]):
    """The tensors of a block by key, as views of the memory that holds it."""

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The same as modules take them; made once, because the same buffer holds the same block in many sweeps."""
        return {key: nn.Parameter(tensor, requires_grad=False) for key, tensor in self.items()}


class BlockMemory:
    """Memory (uint8, `[num_bytes]`, on any device) that holds one block at a time."""

    def __init__(self, memory: torch.Tensor) -> None:
        self.bytes = memory
        self._tensors: dict[str, LoadedTensors] = {}

    def tensors(self, block: Block) -> LoadedTensors:
        """Return the tensors of `block`, which lies here; the same ones every time it does."""
        if block.name not in self._tensors:
            self._tensors[block.name] = block_tensors(block, self.bytes)
        return self._tensors[block.name]

    def wait_until_free(self) -> None:
        """Return when nobody needs any more what was loaded here before."""


class Buffer(BlockMemory):
    """Page-aligned host memory of `num_bytes` that one block at a time is loaded into.

    It is mapped apart from the heap, so that letting go of it returns every page to the system at once. `is_slow` where a card
    copies from it and it could not be pinned.
    """

    is_slow = False

    def __init__(self, num_bytes: int) -> None:
        super().__init__(torch.frombuffer(aligned_memory(num_bytes), dtype=torch.uint8))  # which keeps the mapping
        self.num_bytes = num_bytes
        self._parts: dict[int, BlockMemory] = {}

    def part(self, start: int) -> BlockMemory:
        """Return what begins `start` bytes into it, a whole number of pages, for a block that shares it with others."""
        if start == 0:
            return self
        if start not in self._parts:
            self._parts[start] = BlockMemory(self.bytes[start:])
        return self._parts[start]


def aligned_memory(num_bytes: int) -> mmap.mmap:
    """Map fresh memory that begins at a page."""
    memory = mmap.mmap(-1, max(num_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if num_bytes >= _HUGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)  # fewer address translations while the weights are gone through
    return memory


def block_tensors(block: Block, memory: torch.Tensor) -> LoadedTensors:
    """Return the tensors of `block` by key, as views of `memory` (uint8, `[loaded_bytes]` or longer) that holds it."""
    return LoadedTensors(
        (tensor.key, memory[tensor.offset : tensor.offset + tensor.num_bytes].view(tensor.dtype).view(tensor.shape))
        for tensor in block.tensors
    )
