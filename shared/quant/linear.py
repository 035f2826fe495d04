"""Modules with packed weights that stand in for linear layers."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from layermesh.shared.quant.forms import QuantForm
from layermesh.shared.quant.multiplying import multiply


class QuantLinear(nn.Module):
    """A linear layer whose weights are packed: `packed` and `scales` are buffers, on the meta device until they are bound.

    `tile` is the rows per tile of the packed layout.
    """

    packed: torch.Tensor
    scales: torch.Tensor

    def __init__(
        self, in_features: int, out_features: int, form: QuantForm, tile: int, bias: nn.Parameter | None = None
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.form = form
        self.tile = tile
        packed, scales = form.packed_shape(out_features, in_features), form.scales_shape(out_features, in_features)
        self.register_buffer("packed", torch.empty(packed, dtype=torch.uint8, device="meta"))
        self.register_buffer("scales", torch.empty(scales, dtype=torch.bfloat16, device="meta"))
        self.bias = bias

    @property
    def bits(self) -> int:
        """Bits per weight."""
        return self.form.bits

    @property
    def group_size(self) -> int:
        """Weights that share a scale."""
        return self.form.group

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return `[..., out_features]` for `[..., in_features]`, in the same dtype."""
        buffers: Any = self._buffers  # faster to look into than modules
        made = multiply(inputs, buffers["packed"], buffers["scales"], self.form, self.tile)
        if made.shape[-1] != self.out_features:
            made = made[..., : self.out_features]
        return made if self.bias is None else made + self.bias

    def extra_repr(self) -> str:
        """Say what it is in one line."""
        return f"{self.in_features}, {self.out_features}, bits={self.bits}, group_size={self.group_size}"


class PackedHead(nn.Module):
    """An output projection in pieces, each some rows of it, so that one at a time suffices.

    `bounds` are the rows where pieces begin, and the last one's end.
    """

    def __init__(
        self, in_features: int, bounds: Sequence[int], form: QuantForm, tile: int, bias: nn.Parameter | None = None
    ) -> None:
        super().__init__()
        self.bounds = tuple(bounds)
        self.pieces = nn.ModuleList(
            QuantLinear(in_features, end - start, form, tile) for start, end in itertools.pairwise(self.bounds)
        )
        self.bias = bias

    def project(self, number: int, hidden: torch.Tensor) -> torch.Tensor:
        """Compute the logits of piece `number`: `[..., hidden]` to `[..., rows of the piece]`."""
        logits: torch.Tensor = self.pieces[number](hidden)
        start, end = self.bounds[number : number + 2]
        return logits if self.bias is None else logits + self.bias[start:end]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute all logits: `[..., hidden]` to `[..., vocab]`."""
        return torch.cat([self.project(number, hidden) for number in range(len(self.pieces))], dim=-1)


def packed_names(model: nn.Module) -> frozenset[str]:
    """Return the names of all packed weights and their scales in `model`."""
    paths = [path for path, module in model.named_modules() if isinstance(module, QuantLinear)]
    return frozenset(f"{path}.{leaf}" for path in paths for leaf in ("packed", "scales"))
