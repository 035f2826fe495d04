"""Memory for weights, taken from the system and given back to it whole."""

import mmap
from collections.abc import Mapping

import torch

from layermesh.shared.model.blocks import Block


class Buffer:
    """Page-aligned host memory of `num_bytes` that one block at a time is loaded into.

    It is mapped apart from the heap, so that letting go of it returns every page to the system at once.
    """

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        memory = mmap.mmap(-1, max(num_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.bytes = torch.frombuffer(memory, dtype=torch.uint8)  # [num_bytes]; it keeps the mapping


def block_tensors(block: Block, memory: torch.Tensor) -> Mapping[str, torch.Tensor]:
    """Return the tensors of `block` by key, as views of `memory` (uint8, `[loaded_bytes]` or longer) that holds it."""
    return {
        tensor.key: memory[tensor.offset : tensor.offset + tensor.num_bytes].view(tensor.dtype).view(tensor.shape)
        for tensor in block.tensors
    }
