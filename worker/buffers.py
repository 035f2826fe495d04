"""Memory for weights, taken from the system and given back to it whole."""

import mmap
from collections.abc import Mapping
from typing import Final

import torch

from layermesh.shared.model.blocks import Block

_HUGE_BYTES: Final = 1 << 22


class Buffer:
    """Page-aligned host memory of `num_bytes` that one block at a time is loaded into.

    It is mapped apart from the heap, so that letting go of it returns every page to the system at once.
    """

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self.bytes = torch.frombuffer(aligned_memory(num_bytes), dtype=torch.uint8)  # [num_bytes]; it keeps the mapping


def aligned_memory(num_bytes: int) -> mmap.mmap:
    """Map fresh memory that begins at a page."""
    memory = mmap.mmap(-1, max(num_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if num_bytes >= _HUGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)  # fewer address translations while the weights are gone through
    return memory


def block_tensors(block: Block, memory: torch.Tensor) -> Mapping[str, torch.Tensor]:
    """Return the tensors of `block` by key, as views of `memory` (uint8, `[loaded_bytes]` or longer) that holds it."""
    return {
        tensor.key: memory[tensor.offset : tensor.offset + tensor.num_bytes].view(tensor.dtype).view(tensor.shape)
        for tensor in block.tensors
    }
