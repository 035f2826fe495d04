"""Modules with packed weights that stand in for linear layers."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from layermesh.shared.quant.around import NOTHING, Around
from layermesh.shared.quant.forms import QuantForm, padded
from layermesh.shared.quant.multiplying import MANY_ROWS, MANY_ROWS_FOR_BYTES, Way, choose_way, multiply
from layermesh.shared.quant.native.kernel import DTYPES, Product, native_kernel
from layermesh.shared.quant.native.structures import Matrix


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
        self.register_buffer("scales", torch.empty(scales, dtype=form.scales_dtype, device="meta"))
        self.bias = bias
        self._products: dict[tuple[object, ...], Product | None] = {}  # of our kernel, by what else they depend on

    @property
    def bits(self) -> int:
        """Bits per weight."""
        return self.form.bits

    @property
    def group_size(self) -> int:
        """Weights that share a scale."""
        return self.form.group

    def forward(
        self, inputs: torch.Tensor, around: Around = NOTHING, into: torch.Tensor | None = None, column: int = 0
    ) -> torch.Tensor:
        """Return `[..., out_features]` for `[..., in_features]`, in the same dtype, or `into` with them from `column` on.

        What is to be done `around` the product is done on the way where our kernel computes it.
        """
        buffers: Any = self._buffers  # faster to look into than modules
        packed, scales = buffers["packed"], buffers["scales"]
        if inputs.is_cpu and packed.is_cpu and inputs.is_contiguous():
            num_rows = inputs.numel() // self.in_features
            product = self.product(num_rows, inputs.dtype, around, None if into is None else into.shape[-1])
            if product is not None:
                made = inputs.new_empty(*inputs.shape[:-1], product.width) if into is None else into
                product(packed, scales, inputs, num_rows, made, column, around, self.bias)
                return made
        made = multiply(around.prepare(inputs), packed, scales, self.form, self.tile)[..., : self.out_features]
        made = around.finish(made if self.bias is None else made + self.bias)
        if into is None:
            return made
        into[..., column : column + made.shape[-1]] = made
        return into

    def product(self, num_rows: int, dtype: torch.dtype, around: Around = NOTHING, width: int | None = None) -> Product | None:
        """Return how our kernel does it all, results `width` numbers apart; None where it cannot or should not."""
        key = num_rows < MANY_ROWS_FOR_BYTES, num_rows < MANY_ROWS, dtype, around.is_gated, around.epsilon, width
        try:
            return self._products[key]
        except KeyError:
            product = self._products[key] = self._prepare(num_rows, dtype, around, width)
            return product

    def _prepare(self, num_rows: int, dtype: torch.dtype, around: Around, width: int | None) -> Product | None:
        kernel, way = native_kernel(), choose_way(num_rows, self.form, self.in_features)
        halves_fit = not around.is_gated or self.out_features % (2 * self.tile) == 0
        others = (around.norm, around.residual, self.bias)
        if kernel is None or way is Way.TORCH or dtype not in DTYPES or not halves_fit:
            return None
        if any(tensor is not None and tensor.dtype is not dtype for tensor in others):
            return None
        rows, columns = padded(self.out_features), self.in_features
        used = self.out_features // 2 if around.is_gated else self.out_features
        matrix = Matrix(
            self.form, self.tile, rows, columns, dtype, used, gated=around.is_gated, width=width, epsilon=around.epsilon
        )
        return kernel.prepare(matrix, many=way is Way.MANY)

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

    def project(self, number: int, hidden: torch.Tensor, logits: torch.Tensor) -> None:
        """Write those of piece `number` into all `logits`, `[..., vocab]`, of `hidden`, `[..., hidden]`."""
        start, end = self.bounds[number : number + 2]
        self.pieces[number](hidden, NOTHING, logits, start)
        if self.bias is not None:
            logits[..., start:end] += self.bias[start:end]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute all logits: `[..., hidden]` to `[..., vocab]`."""
        logits = hidden.new_empty(*hidden.shape[:-1], self.bounds[-1])
        for number in range(len(self.pieces)):
            self.project(number, hidden, logits)
        return logits


def packed_names(model: nn.Module) -> frozenset[str]:
    """Return the names of all packed weights and their scales in `model`."""
    paths = [path for path, module in model.named_modules() if isinstance(module, QuantLinear)]
    return frozenset(f"{path}.{leaf}" for path in paths for leaf in ("packed", "scales"))
