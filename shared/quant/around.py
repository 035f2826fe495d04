"""What a layer does right before and right after a product, so that a kernel can do it on the way."""

from typing import NamedTuple

import torch
from torch import nn


class Around(NamedTuple):
    """Inputs are divided by their root mean square and multiplied with `norm`, `[in]`; then comes the product.

    Where it `is_gated`, results are silu(first half) × second half. In the end comes `residual`, in the shape of the results.
    """

    norm: torch.Tensor | None = None
    epsilon: float = 0.0
    is_gated: bool = False
    residual: torch.Tensor | None = None

    def prepare(self, inputs: torch.Tensor) -> torch.Tensor:
        """Do with torch what comes before."""
        return inputs if self.norm is None else torch.rms_norm(inputs, self.norm.shape, self.norm, self.epsilon)

    def finish(self, made: torch.Tensor) -> torch.Tensor:
        """Do with torch what comes after."""
        if self.is_gated:
            gate, up = made.chunk(2, dim=-1)
            made = nn.functional.silu(gate) * up
        return made if self.residual is None else self.residual + made


NOTHING = Around()
