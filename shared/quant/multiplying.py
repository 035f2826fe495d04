"""Products with packed matrices.

A few rows go straight through a kernel that reads the packed weights once for every few of them: our own, or torch's where that
cannot be had. Many rows are worth unpacking for: 4-bit weights to bytes in our kernel, where the processor multiplies those;
others to bfloat16, which torch's kernel does fastest, by multiplying small blocks of the matrix with the identity. They are
multiplied as that where the processor does, else as float32, which torch does many times as fast there.
"""

from enum import Enum
from typing import Final

import torch

from layermesh.shared.processor import multiplies_bfloat16
from layermesh.shared.quant.forms import QuantForm, padded
from layermesh.shared.quant.native.kernel import DTYPES, native_kernel
from layermesh.shared.quant.quants import unpack, with_whole_digits
from layermesh.shared.quant.scales import as_pairs
from layermesh.shared.quant.tiles import kernel_tile

# From here on unpacking pays, tried with AVX512-BF16.
MANY_ROWS_FOR_BYTES: Final = 32
MANY_ROWS: Final = 160
MANY_ROWS_FOR_TORCH: Final = 80
UNPACKED_BYTES: Final = 4 << 20  # of weights that are unpacked at a time, twice
_KERNEL: Final = torch.ops.aten._weight_int4pack_mm_for_cpu.default
_PLAIN_BYTES: Final = 16 << 20  # the same in float32 where there is no kernel
_CUDA_BYTES: Final = 256 << 20


class Way(Enum):
    """How a product is made."""

    FEW = "our kernel, which reads packed weights for every few rows"
    MANY = "our kernel, which unpacks to bytes"
    TORCH = "torch's kernels"


def choose_way(num_rows: int, form: QuantForm, columns: int) -> Way:
    """Return how `num_rows` inputs on a CPU are best multiplied with a matrix of `columns`."""
    native = native_kernel()
    if native is None:
        return Way.TORCH
    in_bytes = native.suits_many(form, columns)
    if num_rows < (MANY_ROWS_FOR_BYTES if in_bytes else MANY_ROWS):
        return Way.FEW
    return Way.MANY if in_bytes else Way.TORCH


def multiply(inputs: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor, form: QuantForm, tile: int) -> torch.Tensor:
    """Return `inputs` × the transposed matrix: `[..., columns]` to `[..., padded rows]`, in the dtype of `inputs`.

    packed: uint8 `form.packed_shape`, scales: `form.scales_shape` in `form.scales_dtype`, both on the device of `inputs`. On a
    CPU sums are float32, of inputs that our kernel rounds to 16 bits under a scale for each group (many rows to 8 bits), and
    torch's to bfloat16 (many rows only where the processor multiplies that).
    """
    rows = inputs.reshape(-1, inputs.shape[-1])
    is_native = inputs.is_cpu and packed.is_cpu  # it would not notice weights that are not there
    way = choose_way(len(rows), form, rows.shape[1]) if is_native else Way.TORCH
    kernel = native_kernel() if way is not Way.TORCH else None
    if kernel is not None:
        rows = (rows if rows.dtype in DTYPES else rows.float()).contiguous()
        made = kernel.product(rows, packed, scales, form, tile, many=way is Way.MANY)
    elif not inputs.is_cpu or tile != kernel_tile():
        made = _multiply_plainly(rows, packed, scales, form, tile)
    elif len(rows) < MANY_ROWS_FOR_TORCH:
        made = _multiply_few(rows.to(torch.bfloat16), packed, scales, form, tile)
    else:
        made = _multiply_many(rows.to(_product_dtype()), packed, scales, form, tile)
    return made.to(inputs.dtype).view(*inputs.shape[:-1], -1)


def unpacking_bytes(rows: int, columns: int, form: QuantForm, tile: int) -> int:
    """Return the memory that products of many inputs with a matrix take beside inputs and outputs."""
    return (2 + (form.bits == 6) + _product_dtype().itemsize) * min(_num_tiles(columns, tile) * tile, padded(rows)) * columns


def _multiply_few(rows: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor, form: QuantForm, tile: int) -> torch.Tensor:
    if form.planes == 2:
        blocks = rows.view(len(rows), -1, form.block)
        rows = torch.stack([blocks, blocks * 16], dim=2).view(len(rows), -1)  # times 16 is exact
    if not form.nested and form.bits != 6:
        return _kernel(rows.contiguous(), packed, form.kernel_group, scales)
    products = rows.new_empty(len(rows), len(packed))
    step = _num_tiles(rows.shape[1], tile) * tile
    for start in range(0, len(packed), step):
        end = min(start + step, len(packed))
        digits = with_whole_digits(packed[start:end], form, tile)
        pairs = as_pairs(scales.narrow(form.rows_of_scales, start, end - start), form, tile).contiguous()
        products[:, start:end] = _kernel(rows, digits, form.kernel_group, pairs)
    return products


def _multiply_many(rows: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor, form: QuantForm, tile: int) -> torch.Tensor:
    columns = rows.shape[1]
    step = _num_tiles(columns, tile) * tile
    products = rows.new_empty(len(rows), len(packed))
    weights = rows.new_empty(columns * min(step, len(packed)))
    for start in range(0, len(packed), step):
        end = min(start + step, len(packed))
        part = weights[: columns * (end - start)].view(columns, end - start)
        _unpack_transposed(packed[start:end], scales.narrow(form.rows_of_scales, start, end - start), form, tile, part)
        torch.mm(rows, part, out=products[:, start:end])
    return products


def _unpack_transposed(packed: torch.Tensor, scales: torch.Tensor, form: QuantForm, tile: int, out: torch.Tensor) -> None:
    """Unpack whole tiles of rows into `out`, `[columns, rows]`.

    Seen as a matrix of one block of columns and many more rows, the packed digits are still in the order of the kernel.
    """
    columns, rows = out.shape
    num_tiles, num_blocks, block = rows // tile, columns // form.block, form.block
    per_tile = as_pairs(scales, form, tile).view(-1, num_tiles, tile, 2).transpose(0, 1)  # [tiles, groups, tile, 2]
    per_block = per_tile.repeat_interleave(form.group // block, dim=1).reshape(1, -1, 2)
    digits = with_whole_digits(packed, form, tile).reshape(-1, form.planes * block // 2)
    made = _kernel(_selector(form), digits, form.planes * block, per_block)  # [block, tiles * blocks * tile]
    in_blocks = made.view(block, num_tiles, num_blocks, tile).permute(2, 0, 1, 3)
    out.view(num_blocks, block, num_tiles, tile).copy_(in_blocks)


def _selector(form: QuantForm) -> torch.Tensor:
    """Inputs that pick one column each: the identity, beside 16 times itself where there are two planes."""
    identity = torch.eye(form.block, dtype=torch.bfloat16)
    return identity if form.bits == 4 else torch.cat([identity, 16 * identity], dim=1)


def _multiply_plainly(
    rows: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor, form: QuantForm, tile: int
) -> torch.Tensor:
    """Unpack some rows at a time with bit operations, on any device."""
    most = _CUDA_BYTES if rows.device.type == "cuda" else _PLAIN_BYTES
    step = max(most // (4 * rows.shape[1] * tile), 1) * tile
    products = rows.new_empty(len(rows), len(packed))
    for start in range(0, len(packed), step):
        end = min(start + step, len(packed))
        some = scales.narrow(form.rows_of_scales, start, end - start)
        weights = unpack(packed[start:end], some, form, tile).dequantise().to(rows.dtype)
        products[:, start:end] = rows @ weights.t()
    return products


def _product_dtype() -> torch.dtype:
    return torch.bfloat16 if multiplies_bfloat16() else torch.float32


def _num_tiles(columns: int, tile: int) -> int:
    return max(UNPACKED_BYTES // (2 * columns * tile), 1)


def _kernel(rows: torch.Tensor, packed: torch.Tensor, group: int, scales: torch.Tensor) -> torch.Tensor:
    made: torch.Tensor = _KERNEL(rows, packed, group, scales)
    return made
