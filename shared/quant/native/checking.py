"""Whether a kernel that has just been built computes what it should."""

from collections.abc import Callable
from typing import Final

import torch

from layermesh.shared.quant.forms import QuantForm
from layermesh.shared.quant.quants import Quants
from layermesh.shared.quant.tiles import packing_tile

_FORMS: Final = (QuantForm(4, 32), QuantForm(8, 32), QuantForm(8, 16))
_TOLERANCE: Final = 2e-4  # 16 bits for each input
_ROWS, _COLUMNS, _NUM_INPUTS = 256, 256, 5

Multiply = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, QuantForm, int], torch.Tensor]  # as NativeKernel.multiply


def computes_correctly(multiply: Multiply) -> bool:
    """Whether products with small matrices of random weights are right."""
    return all(_error(multiply, form, packing_tile()) <= _TOLERANCE for form in _FORMS)


def _error(multiply: Multiply, form: QuantForm, tile: int) -> float:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 2**form.bits, (_ROWS, _COLUMNS), generator=generator, dtype=torch.uint8)
    scale, zero = torch.randn(2, _ROWS, _COLUMNS // form.group, generator=generator).to(torch.bfloat16)
    quants = Quants(form, values, scale, zero)
    inputs = torch.randn(_NUM_INPUTS, _COLUMNS, generator=generator)
    expected = inputs.double() @ quants.dequantise().double().t()
    made = multiply(inputs, *quants.pack(tile), form, tile)
    return float((made - expected).abs().max() / expected.abs().max())
