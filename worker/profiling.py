"""Measuring how fast this machine reads a model's blocks and computes with them."""

import itertools
import time
from collections.abc import Sequence

import torch
from torch import nn

from layermesh.shared.model.blocks import Block
from layermesh.shared.profile import Profile
from layermesh.shared.quant.forms import QuantForm
from layermesh.shared.quant.multiplying import multiply
from layermesh.shared.quant.tiles import packing_tile
from layermesh.worker.buffers import Buffer, block_tensors
from layermesh.worker.files import FileReader
from layermesh.worker.loading import BlockLoader

BLOCK_SECONDS = 1.2e-3  # transformers' Python and small kernels per layer on a CPU (SmolLM2-135M: 37 ms for 30 layers)
NUM_LOADS = 6
NUM_PRODUCTS = 4


def measure_profile(*blocks: Block) -> Profile:
    """Load some of `blocks` as a sweep would, with and without one token's products beside it.

    Reading and computing share cores and memory: by how much the two together are slower than the slower of them counts as
    reading. This takes the memory of two blocks, the largest of them. Raises CheckpointError where one cannot be read.
    """
    first, *sample = _spread(blocks, 1 + NUM_LOADS)
    buffers = [Buffer(max(block.loaded_bytes for block in (first, *sample))) for _ in range(2)]
    files = FileReader()
    loader = BlockLoader(files)
    try:
        _sweep(loader, [first] * len(buffers), buffers)  # starts the threads, imports what decodes, touches the memory
        matrices = _matrices(first, buffers[0])
        compute_rate = min(_multiply(matrices) for _ in range(NUM_PRODUCTS)) / max(_num_bytes(matrices), 1)
        load_seconds = _sweep(loader, sample, buffers)
        both_seconds = _sweep(loader, sample, buffers, computing=True)
    finally:
        loader.close()
        files.close()
    compute_seconds = compute_rate * sum(_num_bytes(_matrices(block, buffers[0])) for block in sample)
    load_seconds += max(both_seconds - max(load_seconds, compute_seconds), 0)
    return Profile(
        load_seconds_per_byte=load_seconds / max(sum(block.stored_bytes for block in sample), 1),
        compute_seconds_per_byte=compute_rate,
        block_seconds=BLOCK_SECONDS,
    )


def _spread(blocks: Sequence[Block], num_blocks: int) -> list[Block]:
    """Return `num_blocks` from all over `blocks`, some of them again where there are fewer."""
    if len(blocks) < num_blocks:
        return [blocks[number % len(blocks)] for number in range(num_blocks)]
    return [blocks[number * len(blocks) // num_blocks] for number in range(num_blocks)]


def _sweep(loader: BlockLoader, blocks: Sequence[Block], buffers: Sequence[Buffer], *, computing: bool = False) -> float:
    """Seconds to load `blocks` into the two buffers in turn, each while the one before it is awaited and computed with."""
    began = time.monotonic()
    in_turn = list(zip(blocks, itertools.cycle(buffers), strict=False))
    loadings = [loader.start(*in_turn[0])]
    for number, (block, buffer) in enumerate(in_turn):
        if number + 1 < len(in_turn):
            loadings.append(loader.start(*in_turn[number + 1]))
        loadings[number].wait()
        if computing:
            _multiply(_matrices(block, buffer))
    return time.monotonic() - began


@torch.inference_mode()
def _multiply(matrices: "Sequence[_Product]") -> float:
    """Seconds that one token takes against all of `matrices`."""
    inputs = [matrix.token() for matrix in matrices]
    began = time.monotonic()
    for token, matrix in zip(inputs, matrices, strict=True):
        matrix.multiply(token)
    return time.monotonic() - began


class _Product:
    """A matrix `[out, in]`, or packed digits and their scales, to multiply with."""

    def __init__(self, weights: torch.Tensor, scales: torch.Tensor | None = None) -> None:
        self._weights = weights
        self._scales = scales

    @property
    def nbytes(self) -> int:
        return self._weights.nbytes + (0 if self._scales is None else self._scales.nbytes)

    def token(self) -> torch.Tensor:
        if self._scales is None:
            return torch.ones(1, self._weights.shape[1], dtype=self._weights.dtype)
        return torch.ones(1, 2 * self._weights.shape[1], dtype=torch.bfloat16)

    def multiply(self, token: torch.Tensor) -> None:
        if self._scales is None:
            nn.functional.linear(token, self._weights)
            return
        form = QuantForm(4, token.shape[1] // len(self._scales))  # two planes are multiplied with like one of twice the width
        multiply(token, self._weights, self._scales, form, packing_tile())


def _matrices(block: Block, buffer: Buffer) -> list[_Product]:
    tensors = block_tensors(block, buffer.bytes)
    dense = [_Product(tensor) for tensor in tensors.values() if _is_matrix(tensor)]
    packed = [key.removesuffix("packed") for key, tensor in tensors.items() if key.endswith(".packed")]
    return dense + [_Product(tensors[f"{path}packed"], tensors[f"{path}scales"]) for path in packed]


def _num_bytes(matrices: "Sequence[_Product]") -> int:
    return sum(matrix.nbytes for matrix in matrices)


def _is_matrix(tensor: torch.Tensor) -> bool:
    return tensor.ndim == 2 and tensor.is_floating_point()
