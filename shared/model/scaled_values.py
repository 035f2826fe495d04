"""Weights stored as one number each, FP8 or int8, under scales: the layouts that exist, and the arithmetic."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch

from layermesh.shared.model.quant_config import Block

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ScaleGrid:
    """Scales over weights: `shape` has as many dimensions as the weights, `block` is how far one scale reaches in each.

    The last block of a dimension may be shorter. A dimension with one scale has a block as long as the weights.
    """

    shape: Shape
    block: Shape

    @property
    def is_broadcast(self) -> bool:
        """Whether every dimension has one scale, or one for each weight."""
        return all(size == 1 or side == 1 for size, side in zip(self.shape, self.block, strict=True))


def fit_grid(weights: Shape, scale: Shape, block: Block | None, *, by_output: bool = False) -> ScaleGrid | None:
    """Return how a stored scale of the shape `scale` lies over `weights`, None where nothing states that it does.

    `block` is stated by the configuration and never derived from the shapes: they determine it only without a remainder.
    `by_output` is FBGEMM's layout of experts, whose scales count outputs, the last dimension, whichever place they have.
    """
    if prod(scale) == 1 and (block is None or len(scale) < 2 or len(weights) < 2):
        return _grid(weights, (1,) * len(weights))
    if block is not None:
        return _fit_blocks(weights, scale, block)
    if len(weights) == 2:
        return _grid(weights, (weights[0], 1)) if scale in ((weights[0],), (weights[0], 1)) else None
    return _fit_experts(weights, scale, by_output=by_output) if len(weights) == 3 else None


def apply_scale(weights: torch.Tensor, scale: torch.Tensor, grid: ScaleGrid, zero: torch.Tensor | None = None) -> torch.Tensor:
    """Return `(weights - zero) * scale`, computed in the memory of `weights`; all are float32, `zero` lies like `scale`."""
    if zero is not None:
        _combine(weights, zero, grid, torch.Tensor.sub_)
    _combine(weights, scale, grid, torch.Tensor.mul_)
    return weights


def _combine(
    weights: torch.Tensor, scale: torch.Tensor, grid: ScaleGrid, operation: Callable[[torch.Tensor, torch.Tensor], object]
) -> None:
    scale = scale.reshape(grid.shape)
    if grid.is_broadcast:
        operation(weights, scale)
        return
    *_, high, wide = grid.block
    rows, columns = weights.shape[-2:]
    tall = scale.repeat_interleave(high, -2)[..., :rows, :] if scale.shape[-2] > 1 else scale
    whole = columns // wide * wide
    if whole:
        operation(weights[..., :whole].view(*weights.shape[:-1], whole // wide, wide), tall[..., : whole // wide, None])
    if whole < columns:
        operation(weights[..., whole:], tall[..., -1:])


def _fit_blocks(weights: Shape, scale: Shape, block: Block) -> ScaleGrid | None:
    if len(weights) < 2:
        return None
    *experts, rows, columns = weights
    high, wide = block[0], max(columns, 1) if block[1] == -1 else block[1]
    shape = (*experts, -(-rows // high), -(-columns // wide))
    reach = (*(1 for _ in experts), high if shape[-2] > 1 else rows, wide if shape[-1] > 1 else columns)
    return ScaleGrid(shape, reach) if scale == shape else None


def _fit_experts(weights: Shape, scale: Shape, *, by_output: bool) -> ScaleGrid | None:
    num_experts, high, wide = weights
    if scale in ((num_experts,), (num_experts, 1), (num_experts, 1, 1)):
        return _grid(weights, (num_experts, 1, 1))
    if scale == (num_experts, 1, wide) or (by_output and scale == (num_experts, wide, 1)):
        return _grid(weights, (num_experts, 1, wide))
    return _grid(weights, scale) if scale == (num_experts, high, 1) and not by_output else None


def _grid(weights: Shape, shape: Sequence[int]) -> ScaleGrid:
    return ScaleGrid(tuple(shape), tuple(-(-size // max(count, 1)) for size, count in zip(weights, shape, strict=True)))
