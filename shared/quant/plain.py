"""Products of single tokens with matrices that are not packed, where our kernel can be had.

It goes through weights as fast as they come from memory, and gives a token the same bits whoever is multiplied beside it.
"""

import torch

from layermesh.shared.quant.native.kernel import native_kernel


def suits(hidden: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor | None = None) -> bool:
    """Whether `hidden` is one token that our kernel can multiply with `weights`; it would not notice what does not fit."""
    if hidden.numel() != hidden.shape[-1] or hidden.shape[-1] != weights.shape[-1] or not (hidden.is_cpu and weights.is_cpu):
        return False
    if hidden.dtype is not weights.dtype:
        return False
    if bias is not None and not (bias.dtype is weights.dtype and bias.is_cpu and bias.is_contiguous()):
        return False
    kernel = native_kernel()
    return kernel is not None and kernel.suits_plain(weights)


def multiply(hidden: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return the product of `hidden`, `[..., columns]`, for whose tokens `suits` holds: `[..., rows]`."""
    kernel = native_kernel()
    assert kernel is not None
    made = kernel.multiply_plain(hidden.reshape(-1, hidden.shape[-1]).contiguous(), weights, bias)
    return made.view(*hidden.shape[:-1], -1)
