"""A matrix of quantised values with its scales, on its way into a pack."""

from dataclasses import dataclass
from typing import Final

import torch

from layermesh.shared.quant.forms import QuantForm, pad_rows
from layermesh.shared.quant.scales import nest, pack_scales, row_scale, unpack_scales
from layermesh.shared.quant.tiles import LEAST_HIGH_DIGIT, pack_digits, share_digits, split_digits, unpack_digits

ABOVE_SIX_BITS: Final = 16 * LEAST_HIGH_DIGIT  # by how much a value of 6 bits is larger as one of 8


@dataclass(frozen=True, slots=True)
class Quants:
    """Rows of a matrix: `values` uint8 `[rows, columns]`, `scale` and `zero` `[rows, groups]`.

    A weight is `scale × (value - form.offset) + form.weight_of_zero × zero`. Scales and zeros are bfloat16; nested ones are
    float32 as `scales.nest` makes them, under those of rows, bfloat16 `[rows]`.
    """

    form: QuantForm
    values: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    row_scale: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.form.nested != (self.row_scale is not None):
            raise ValueError(f"{self.form} {'needs' if self.form.nested else 'has no'} scales of rows")

    def dequantise(self) -> torch.Tensor:
        """Return the weights they stand for, float32 `[rows, columns]`."""
        form = self.form
        steps = self.values.view(len(self.values), -1, form.group).float() - form.offset
        weights = steps * self.scale.float()[..., None] + form.weight_of_zero * self.zero.float()[..., None]
        return weights.view(self.values.shape)

    def pack(self, tile: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return digits and scales in the order of the kernel, of `form.packed_shape` and `form.scales_shape`."""
        scales = pack_scales(self.scale, self.zero, self.row_scale, tile)
        packed = pack_digits(_digits(pad_rows(self.values), self.form), tile)
        return (share_digits(packed, self.form.block, tile) if self.form.bits == 6 else packed), scales


def quants_of(form: QuantForm, values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> Quants:
    """Return quants with scales and zeros that come closest to `scale` and `zero`, float32 `[rows, groups]`.

    Nested scales are not negative: they become their sizes.
    """
    if not form.nested:
        return Quants(form, values, scale.to(torch.bfloat16), zero.to(torch.bfloat16))
    of_row = row_scale(scale.abs())
    return Quants(form, values, *nest(scale.abs(), zero, of_row), of_row)


def unpack(packed: torch.Tensor, scales: torch.Tensor, form: QuantForm, tile: int) -> Quants:
    """Return what was packed, rows of padding included."""
    digits = unpack_digits(with_whole_digits(packed, form, tile), tile)
    return Quants(form, _values(digits, form), *unpack_scales(scales, form, tile))


def with_whole_digits(packed: torch.Tensor, form: QuantForm, tile: int) -> torch.Tensor:
    """Return packed weights as torch's kernel reads them: those of 6 bits as 8 bits are packed, `[rows, columns]`."""
    return split_digits(packed, form.block, tile) if form.bits == 6 else packed


def _digits(values: torch.Tensor, form: QuantForm) -> torch.Tensor:
    if form.bits == 4:
        return values
    blocks = (values if form.bits == 8 else values + ABOVE_SIX_BITS).view(len(values), -1, form.block)
    return torch.stack([blocks & 15, blocks >> 4], dim=2).view(len(values), -1)


def _values(digits: torch.Tensor, form: QuantForm) -> torch.Tensor:
    if form.bits == 4:
        return digits
    low, high = digits.view(len(digits), -1, 2, form.block).unbind(dim=2)
    values = (low | (high << 4)).reshape(len(digits), -1)
    return values if form.bits == 8 else values - ABOVE_SIX_BITS


def widen(quants: Quants, form: QuantForm) -> Quants:
    """Return the same quants in `form`, which has smaller groups or more bits; itself where it is the same.

    Raises ValueError for a form that does not hold them.
    """
    if form == quants.form:
        return quants
    if form.bits < quants.form.bits or quants.form.group % form.group or form.nested or quants.form.nested:
        raise ValueError(f"{quants.form} does not fit {form}")
    times = quants.form.group // form.group
    zero = quants.zero.float() * quants.form.weight_of_zero / form.weight_of_zero
    return Quants(
        form,
        quants.values + (form.offset - quants.form.offset),
        quants.scale.repeat_interleave(times, dim=1),
        zero.to(torch.bfloat16).repeat_interleave(times, dim=1),
    )
