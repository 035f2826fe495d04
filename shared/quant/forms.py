"""The forms a matrix can be packed in: 4, 6 or 8 bits a weight, and how many weights share a scale."""

import math
from dataclasses import dataclass
from typing import Final

import torch

ROW_MULTIPLE: Final = 64  # packed matrices have whole tiles of rows, whichever tile the processor's kernel reads
_GROUPS: Final = {4: (32, 64, 128, 256), 6: (16, 32, 64, 128), 8: (16, 32, 64, 128)}  # by bits
_DIGIT_BLOCK: Final = 32  # columns whose low and high digits lie side by side


@dataclass(frozen=True, slots=True)
class QuantForm:
    """`bits` per weight, and `group` weights of a row that share a scale and a zero; those `nested` under a scale of the row.

    Packed matrices are made of 4-bit digits. An 8-bit weight is two of them, 16 × high + low, under the same scale, so that
    torch's kernel for 4 bits computes both: each `block` of columns becomes its low digits and then its high digits, and the
    inputs become `[x, 16 x]` in the same order. A 6-bit weight is one of 8 bits whose high digit is 6, 7, 8 or 9, which two
    bits tell; those of two columns share a digit.
    """

    bits: int
    group: int
    nested: bool = False

    def __post_init__(self) -> None:
        if self.group not in _GROUPS.get(self.bits, ()) or (self.nested and self.bits != 4):
            raise ValueError(
                f"there is no form of {self.bits} bits in groups of {self.group}{' with nested scales' * self.nested}"
            )

    @property
    def planes(self) -> int:
        """4-bit digits per weight, once those of 6 bits are apart."""
        return 1 if self.bits == 4 else 2

    @property
    def kernel_group(self) -> int:
        """Digits of a row that share a scale."""
        return self.planes * self.group

    @property
    def block(self) -> int:
        """Columns whose digits of one plane lie together."""
        return min(self.group, _DIGIT_BLOCK)

    @property
    def offset(self) -> int:
        """The value that stands for the zero alone: w = scale × (value - offset) + weight_of_zero × zero."""
        return {4: 8, 6: 40, 8: 136}[self.bits]

    @property
    def weight_of_zero(self) -> int:
        """How often the zero counts: once for each plane, times 16 in the high one."""
        return 1 if self.bits == 4 else 17

    def packed_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """Shape of the packed digits, uint8."""
        return padded(rows), self.bits * columns // 8

    def scales_shape(self, rows: int, columns: int) -> tuple[int, int, int]:
        """Shape of scales and zeros, in `scales_dtype`; the scales of rows count as one group more."""
        groups = columns // self.group
        return (padded(rows), groups + 1, 2) if self.nested else (groups, padded(rows), 2)

    @property
    def rows_of_scales(self) -> int:
        """The dimension of the scales' shape that has the rows; whole tiles can be cut and joined there."""
        return 0 if self.nested else 1

    @property
    def scales_dtype(self) -> torch.dtype:
        """Bytes where they are nested, else bfloat16."""
        return torch.uint8 if self.nested else torch.bfloat16

    def num_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a packed matrix with its scales."""
        packed, scales = self.packed_shape(rows, columns), self.scales_shape(rows, columns)
        return packed[0] * packed[1] + math.prod(scales) * self.scales_dtype.itemsize


def padded(rows: int) -> int:
    """Return `rows` rounded up to whole tiles."""
    return -(-rows // ROW_MULTIPLE) * ROW_MULTIPLE


def pad_rows(matrix: torch.Tensor) -> torch.Tensor:
    """Return `matrix` with rows of zeros added up to whole tiles."""
    missing = padded(len(matrix)) - len(matrix)
    if missing == 0:
        return matrix
    return torch.cat([matrix, matrix.new_zeros(missing, *matrix.shape[1:])])
