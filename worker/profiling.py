"""Measuring how fast this machine reads a model's blocks and computes with them."""

import time

import torch
from torch import nn

from layermesh.shared.model.blocks import Block
from layermesh.shared.profile import Profile
from layermesh.worker.buffers import Buffer, block_tensors
from layermesh.worker.files import FileReader
from layermesh.worker.loading import BlockLoader

BLOCK_SECONDS = 1.2e-3  # transformers' Python and small kernels per layer on a CPU (SmolLM2-135M: 37 ms for 30 layers)
NUM_PRODUCTS = 4


def measure_profile(block: Block) -> Profile:
    """Load `block` as a sweep would and multiply one token with its matrices; takes the memory of that block.

    Raises CheckpointError where it cannot be read.
    """
    files = FileReader()
    loader = BlockLoader(files)
    try:
        buffer = Buffer(block.loaded_bytes)
        began = time.monotonic()
        loader.start(block, buffer).wait()
        load_seconds = time.monotonic() - began
    finally:
        loader.close()
        files.close()
    matrices = [tensor for tensor in block_tensors(block, buffer.bytes).values() if _is_matrix(tensor)]
    matrix_bytes = sum(matrix.nbytes for matrix in matrices)
    return Profile(
        load_seconds_per_byte=load_seconds / max(block.stored_bytes, 1),
        compute_seconds_per_byte=min(_multiply(matrices) for _ in range(NUM_PRODUCTS)) / max(matrix_bytes, 1),
        block_seconds=BLOCK_SECONDS,
    )


@torch.inference_mode()
def _multiply(matrices: list[torch.Tensor]) -> float:
    """Seconds that one token takes against all of `matrices`, each `[out, in]`."""
    inputs = [torch.ones(1, matrix.shape[1], dtype=matrix.dtype) for matrix in matrices]
    began = time.monotonic()
    for token, matrix in zip(inputs, matrices, strict=True):
        nn.functional.linear(token, matrix)
    return time.monotonic() - began


def _is_matrix(tensor: torch.Tensor) -> bool:
    return tensor.ndim == 2 and tensor.is_floating_point()
