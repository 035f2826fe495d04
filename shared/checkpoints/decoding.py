"""From stored bytes to values, in pieces small enough that nothing but the result needs memory."""

from functools import cache
from math import prod
from typing import TYPE_CHECKING, Final

import torch

from layermesh.shared.checkpoints.simple_quants import SIMPLE_ENCODINGS, decode_blocks
from layermesh.shared.checkpoints.tensors import TORCH_DTYPES

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

_CHUNK_ELEMENTS: Final = 2**16  # gguf's temporaries take 1.0 to 1.4 MiB
_SIMPLE_CHUNK_ELEMENTS: Final = 2**18  # 0.3 MiB of nibbles, and 1 MiB where `out` is not float32


def decode(raw: torch.Tensor, encoding: str, out: torch.Tensor) -> None:
    """Decode `raw` into `out`, cast to its dtype; bit-equal to `gguf.dequantize` where that is float32.

    raw: uint8 [num_bytes], exactly the bytes of the rows of `out`, on the CPU; out: contiguous, of the decoded shape.
    Raises ValueError when sizes contradict each other or `encoding` is unknown.
    """
    expected = prod(out.shape[:-1]) * row_bytes(encoding, out.shape[-1] if out.ndim else 1)
    if raw.numel() != expected:
        raise ValueError(f"{encoding} {list(out.shape)} takes {expected} bytes, not {raw.numel()}")
    if not out.is_contiguous():
        raise ValueError(f"cannot decode into a tensor with strides {out.stride()}")
    if encoding in TORCH_DTYPES:
        _cast(raw, TORCH_DTYPES[encoding], out.view(-1))
    else:
        _dequantize(raw, encoding, out.view(-1))


def row_bytes(encoding: str, num_columns: int) -> int:
    """Return the bytes that one row of `num_columns` values takes in `encoding`.

    Raises ValueError for an unknown encoding, and where the row is no whole number of quantisation blocks.
    """
    block_elements, block_bytes = block_size(encoding)
    if num_columns % block_elements:
        raise ValueError(f"a row of {num_columns} values is no whole number of {encoding} blocks of {block_elements}")
    return num_columns // block_elements * block_bytes


def block_size(encoding: str) -> tuple[int, int]:
    """Return the values and the bytes of one block of `encoding`; raises ValueError if it is unknown."""
    if encoding in TORCH_DTYPES:
        return 1, TORCH_DTYPES[encoding].itemsize
    from gguf import GGML_QUANT_SIZES

    block_elements, block_bytes = GGML_QUANT_SIZES[_kind(encoding)]
    return int(block_elements), int(block_bytes)


@cache
def can_decode(encoding: str) -> bool:
    """Return whether `decode` knows `encoding`, which `gguf` may name without being able to decode it."""
    if encoding in TORCH_DTYPES:
        return True
    import numpy as np
    from gguf import GGML_QUANT_SIZES, dequantize

    kind = _kind(encoding)
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _kind(encoding: str) -> "GGMLQuantizationType":
    from gguf import GGMLQuantizationType

    try:
        return GGMLQuantizationType[encoding]
    except KeyError:
        raise ValueError(f"unknown encoding: {encoding!r}") from None


def _cast(raw: torch.Tensor, dtype: torch.dtype, out: torch.Tensor) -> None:
    if out.dtype == dtype:
        out.view(torch.uint8).copy_(raw)
        return
    if raw.data_ptr() % dtype.itemsize == 0 and raw.storage_offset() % dtype.itemsize == 0:
        out.copy_(raw.view(dtype))
        return
    for start in range(0, out.numel(), _CHUNK_ELEMENTS):  # torch views aligned bytes only
        piece = out[start : start + _CHUNK_ELEMENTS]
        begin = start * dtype.itemsize
        piece.copy_(raw[begin : begin + piece.numel() * dtype.itemsize].clone().view(dtype))


def _dequantize(raw: torch.Tensor, encoding: str, out: torch.Tensor) -> None:
    simple = encoding in SIMPLE_ENCODINGS
    block_elements, block_bytes = block_size(encoding)
    step = max((_SIMPLE_CHUNK_ELEMENTS if simple else _CHUNK_ELEMENTS) // block_elements, 1)
    blocks, decoded = raw.view(-1, block_bytes), out.view(-1, block_elements)
    decode_chunk = _decode_simple if simple else _decode_with_gguf
    for start in range(0, len(blocks), step):
        decode_chunk(blocks[start : start + step], encoding, decoded[start : start + step])


def _decode_simple(blocks: torch.Tensor, encoding: str, out: torch.Tensor) -> None:
    in_place = out.dtype == torch.float32 and out.device.type == "cpu"
    values = out if in_place else torch.empty(out.shape, dtype=torch.float32)
    decode_blocks(blocks, encoding, values)
    if not in_place:
        out.copy_(values)


def _decode_with_gguf(blocks: torch.Tensor, encoding: str, out: torch.Tensor) -> None:
    import numpy as np
    from gguf import dequantize

    with np.errstate(all="ignore"):  # what a damaged scale overflows to is infinite, and no reason for a warning
        # Blocks know nothing of rows: as one row, gguf takes them in one go.
        values = dequantize(blocks.numpy().reshape(1, -1), _kind(encoding))
    out.copy_(torch.from_numpy(values).view(out.shape))
