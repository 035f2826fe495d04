"""The scales and zeros of groups of weights, as packs hold them: two bfloat16, or two bytes under a scale for the whole row.

Pairs lie group by group, as torch's kernels read them. A nested scale is a whole number, 0 to 255, times that of its row, and
its zero a whole number of sixteenths of it, -128 to 127. They lie tile by tile as digits do, so that both are read as they lie:
in a tile group by group, and at its end the scales of its rows, in bfloat16.
"""

from typing import Final

import torch

from layermesh.shared.quant.forms import QuantForm, pad_rows

_MOST_STEPS: Final = 255
_ZERO_STEPS: Final = 16  # in which a scale is divided for its zero
_LOWEST_ZERO: Final = -128
_HIGHEST_ZERO: Final = 127


def row_scale(scale: torch.Tensor) -> torch.Tensor:
    """Return the scale of each row, bfloat16 `[rows]`, of which `scale`, float32 `[rows, groups]`, are at most 255 times."""
    least = scale.amax(dim=1) / _MOST_STEPS
    rounded = least.to(torch.bfloat16)
    return torch.where(rounded.float() < least, (rounded.view(torch.int16) + 1).view(torch.bfloat16), rounded)


def widen_for_zero(low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ranges of weights that hold 0, as far as nested zeros reach: low + 8 × (high - low) / 15 is one of them."""
    high = high.clamp(min=0)
    return torch.minimum(low, -high / (15 * _ZERO_STEPS - 1)), high


def nest(scale: torch.Tensor, zero: torch.Tensor, of_row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what comes closest to `scale` and `zero`, float32 `[rows, groups]`, under the scales `of_row`: float32 too."""
    row = of_row.float()[:, None]
    steps = _times(scale, row).clamp_(1, _MOST_STEPS)
    nested = steps.mul_(row)
    sixteenths = _times(zero * _ZERO_STEPS, nested).clamp_(_LOWEST_ZERO, _HIGHEST_ZERO)
    return nested, sixteenths.mul_(nested / _ZERO_STEPS)


def pack_scales(scale: torch.Tensor, zero: torch.Tensor, of_row: torch.Tensor | None, tile: int) -> torch.Tensor:
    """Return them in the order of the kernel, `form.scales_shape` in `form.scales_dtype`; nested where there is `of_row`."""
    if of_row is None:
        return pad_rows(torch.stack([scale, zero], dim=2)).transpose(0, 1).contiguous()
    row = of_row.float()[:, None]
    steps, sixteenths = _times(scale, row).to(torch.uint8), _times(zero * _ZERO_STEPS, scale).to(torch.int8)
    pairs = torch.stack([steps, sixteenths.view(torch.uint8)], dim=2)  # [rows, groups, 2]
    whole = torch.cat([pairs, of_row[:, None].contiguous().view(torch.uint8)[:, None]], dim=1)
    return _transpose(pad_rows(whole), tile, whole.shape[1])


def unpack_scales(scales: torch.Tensor, form: QuantForm, tile: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return scale and zero, `[rows, groups]`, and the scales of rows, as they came into `pack_scales`."""
    if not form.nested:
        return scales[..., 0].t(), scales[..., 1].t(), None
    whole = _transpose(scales, scales.shape[1], tile)
    of_row = whole[:, -1].contiguous().view(torch.bfloat16)[:, 0]
    steps, sixteenths = whole[:, :-1, 0], whole[:, :-1, 1].contiguous().view(torch.int8)
    scale = steps.float() * of_row.float()[:, None]
    return scale, sixteenths * (scale / _ZERO_STEPS), of_row


def as_pairs(scales: torch.Tensor, form: QuantForm, tile: int) -> torch.Tensor:
    """Return packed scales as pairs of bfloat16, `[groups, rows, 2]`, which torch's kernels read; themselves if they are."""
    if not form.nested:
        return scales
    in_tiles = scales.view(-1, scales.shape[1], tile, 2).transpose(0, 1)  # [groups + 1, tiles, tile, 2]
    steps, sixteenths = in_tiles[:-1, ..., 0], in_tiles.view(torch.int8)[:-1, ..., 1]
    of_row = in_tiles.view(torch.bfloat16)[-1, ..., 0]
    scale = steps.to(torch.bfloat16).mul_(of_row)
    zero = sixteenths.to(torch.bfloat16).mul_(1 / _ZERO_STEPS).mul_(scale)
    return torch.stack([scale, zero], dim=3).view(len(scale), -1, 2)


def _transpose(pairs: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Transpose each `rows` × `columns` pairs where they lie; the shape stays what it is."""
    return pairs.reshape(-1, rows, columns, 2).transpose(1, 2).reshape(pairs.shape)


def _times(numbers: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """How many `steps` each number is, rounded; 0 where steps are 0."""
    return torch.where(steps == 0, 0, numbers / steps).round_()
