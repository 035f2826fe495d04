"""Products with matrices that are not packed, where torch has no fast way and our kernel can be had.

For one token it goes through weights as fast as they come from memory, and gives a token the same bits whoever is multiplied
beside it. For several it stands in where the processor does not multiply bfloat16, which takes torch many times as long as
float32: the weights become float32 a few at a time, and stay bfloat16 in memory.
"""

from typing import Final

import torch

from layermesh.shared.processor import multiplies_bfloat16
from layermesh.shared.quant.native.kernel import native_kernel

MANY_ROWS: Final = 64  # from here on it pays to make float32 of weights for torch
WIDENED_BYTES: Final = 4 << 20  # of float32 weights at a time


def suits(hidden: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor | None = None) -> bool:
    """Whether `hidden` is one token that our kernel can multiply with `weights`; it would not notice what does not fit."""
    return hidden.numel() == hidden.shape[-1] and _fits(hidden, weights, bias)


def suits_several(hidden: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor | None = None) -> bool:
    """Whether `hidden` is of several tokens that torch would take far too long to multiply with `weights`."""
    return weights.dtype is torch.bfloat16 and not multiplies_bfloat16() and hidden.numel() > 0 and _fits(hidden, weights, bias)


def multiply(hidden: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return the product of `hidden`, `[..., columns]`, for whose tokens `suits` holds: `[..., rows]`."""
    kernel = native_kernel()
    assert kernel is not None
    made = kernel.multiply_plain(hidden.reshape(-1, hidden.shape[-1]).contiguous(), weights, bias)
    return made.view(*hidden.shape[:-1], -1)


def multiply_several(hidden: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return the product of `hidden`, `[..., columns]`, for which `suits_several` holds: `[..., rows]`."""
    if hidden.numel() < MANY_ROWS * hidden.shape[-1]:
        return multiply(hidden, weights, bias)
    inputs = hidden.reshape(-1, hidden.shape[-1]).float()
    made = hidden.new_empty(len(inputs), len(weights))
    step = max(WIDENED_BYTES // (4 * weights.shape[1]), 1)
    widened = torch.empty(min(step, len(weights)), weights.shape[1])
    for start in range(0, len(weights), step):
        end = min(start + step, len(weights))
        part = widened[: end - start].copy_(weights[start:end])
        products = torch.mm(inputs, part.t()) if bias is None else torch.addmm(bias[start:end].float(), inputs, part.t())
        made[:, start:end] = products
    return made.view(*hidden.shape[:-1], -1)


def _fits(hidden: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor | None) -> bool:
    if hidden.shape[-1] != weights.shape[-1] or not (hidden.is_cpu and weights.is_cpu) or hidden.dtype is not weights.dtype:
        return False
    if bias is not None and not (bias.dtype is weights.dtype and bias.is_cpu and bias.is_contiguous()):
        return False
    kernel = native_kernel()
    return kernel is not None and kernel.suits_plain(weights)
