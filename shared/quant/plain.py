"""Products of single tokens with matrices that are not packed, where our kernel can be had.

It goes through weights as fast as they come from memory, and gives a token the same bits whoever is multiplied beside it.
"""

import torch

from layermesh.shared.quant.native.kernel import native_kernel


def suits(hidden: torch.Tensor, weights: torch.Tensor) -> bool:
    """Whether `hidden` is one token that our kernel can multiply with `weights`."""
    kernel = native_kernel()
    is_one = hidden.numel() == hidden.shape[-1] and hidden.is_cpu and hidden.dtype is weights.dtype
    return is_one and kernel is not None and kernel.suits_plain(weights)


def multiply(hidden: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return the product of `hidden`, `[..., columns]`, for whose tokens `suits` holds: `[..., rows]`."""
    kernel = native_kernel()
    assert kernel is not None
    made = kernel.multiply_plain(hidden.reshape(-1, hidden.shape[-1]).contiguous(), weights, bias)
    return made.view(*hidden.shape[:-1], -1)
