"""The order of 4-bit digits in memory: tiles of rows, as torch's int4 kernel for this processor reads them.

A tile is stored column by column; each byte has a row of the tile's first half in its low nibble and the row half a tile
further down in the high one.
"""

from functools import cache
from typing import Final

import torch

KERNEL_TILES: Final = {"AVX512": 64, "AVX2": 32}
_USUAL_TILE: Final = 64


@cache
def kernel_tile() -> int | None:
    """Return the rows per tile that this processor's int4 kernel reads; None where it has no fast one."""
    return KERNEL_TILES.get(torch.backends.cpu.get_cpu_capability())


def packing_tile() -> int:
    """Return the rows per tile to pack with on this machine."""
    return kernel_tile() or _USUAL_TILE


def pack_digits(digits: torch.Tensor, tile: int) -> torch.Tensor:
    """Pack `digits`, uint8 `[rows, columns]` below 16, into uint8 `[rows, columns / 2]`; rows must be whole tiles."""
    rows, columns = digits.shape
    low, high = digits.view(-1, tile, columns).chunk(2, dim=1)  # [tiles, tile / 2, columns]
    return (low | (high << 4)).transpose(1, 2).contiguous().view(rows, columns // 2)


def unpack_digits(packed: torch.Tensor, tile: int) -> torch.Tensor:
    """Return the digits, uint8 `[rows, columns]`, that `packed` was made of."""
    rows, half = packed.shape
    in_tiles = packed.view(-1, 2 * half, tile // 2)
    return torch.cat([in_tiles & 15, in_tiles >> 4], dim=2).transpose(1, 2).reshape(rows, 2 * half)
