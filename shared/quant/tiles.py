"""The order of 4-bit digits in memory: tiles of rows, as torch's int4 kernel for this processor reads them.

A tile is stored column by column; each byte has a row of the tile's first half in its low nibble and the row half a tile
further down in the high one.
"""

from functools import cache
from typing import Final

import torch

KERNEL_TILES: Final = {"AVX512": 64, "AVX2": 32}
_USUAL_TILE: Final = 64
LEAST_HIGH_DIGIT: Final = 6  # of the four that two bits tell
_BOTH: Final = 0x11  # what the digits of both rows in a byte are multiplied by


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


def share_digits(packed: torch.Tensor, block: int, tile: int) -> torch.Tensor:
    """Return packed weights of 8 bits, uint8 `[rows, columns]`, with the high digits of two columns in one.

    They are `LEAST_HIGH_DIGIT` to three more; of 8 columns the first four are in the lower bits. It has 3/4 of the size.
    """
    low, high = packed.view(-1, 2, block, tile // 2).unbind(dim=1)
    first, second = (high - LEAST_HIGH_DIGIT * _BOTH).view(len(high), block // 8, 2, 4, tile // 2).unbind(dim=2)
    return torch.cat([low, (first | (second << 2)).flatten(1, 2)], dim=1).view(len(packed), -1)


def split_digits(packed: torch.Tensor, block: int, tile: int) -> torch.Tensor:
    """Return what `share_digits` was given."""
    low, shared = packed.view(-1, block + block // 2, tile // 2).split_with_sizes([block, block // 2], dim=1)
    fours = shared.reshape(len(shared), block // 8, 4, tile // 2)
    high = torch.stack([fours & (3 * _BOTH), (fours >> 2) & (3 * _BOTH)], dim=2) + LEAST_HIGH_DIGIT * _BOTH
    return torch.cat([low, high.flatten(1, 3)], dim=1).view(len(packed), -1)
