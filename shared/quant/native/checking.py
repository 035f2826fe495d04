"""Whether a kernel that has just been built computes what it should."""

from typing import Final, Protocol

import torch

from layermesh.shared.quant.forms import QuantForm
from layermesh.shared.quant.quants import quants_of
from layermesh.shared.quant.tiles import packing_tile

_FORMS: Final = (QuantForm(4, 32, nested=True), QuantForm(4, 32), QuantForm(6, 32), QuantForm(8, 32), QuantForm(8, 16))
_TOLERANCES: Final = {False: 2e-4, True: 2e-2}  # 16 bits for each input; 8 bits for inputs and weights where there are many
_PLAIN_TOLERANCES: Final = {torch.float32: 1e-6, torch.bfloat16: 1e-2}
_ROWS, _COLUMNS, _NUM_INPUTS = 256, 256, 5


class Kernel(Protocol):
    """What is asked of a NativeKernel."""

    def suits_many(self, form: QuantForm, columns: int) -> bool: ...

    def product(
        self, inputs: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor, form: QuantForm, tile: int, *, many: bool
    ) -> torch.Tensor: ...

    def multiply_plain(self, inputs: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor: ...


def computes_correctly(kernel: Kernel) -> bool:
    """Whether products with small matrices of random weights are right, packed and plain."""
    ways = [(form, many) for form in _FORMS for many in (False, True) if not many or kernel.suits_many(form, _COLUMNS)]
    is_right_packed = all(_error(kernel, form, many) <= _TOLERANCES[many] for form, many in ways)
    return is_right_packed and all(_plain_error(kernel, dtype) <= most for dtype, most in _PLAIN_TOLERANCES.items())


def _error(kernel: Kernel, form: QuantForm, many: bool) -> float:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 2**form.bits, (_ROWS, _COLUMNS), generator=generator, dtype=torch.uint8)
    scale, zero = torch.randn(2, _ROWS, _COLUMNS // form.group, generator=generator)
    quants = quants_of(form, values, scale, zero)
    inputs = torch.randn(_NUM_INPUTS, _COLUMNS, generator=generator)
    expected = inputs.double() @ quants.dequantise().double().t()
    tile = packing_tile()
    made = kernel.product(inputs, *quants.pack(tile), form, tile, many=many)
    return float((made - expected).abs().max() / expected.abs().max())


def _plain_error(kernel: Kernel, dtype: torch.dtype) -> float:
    generator = torch.Generator().manual_seed(0)
    shapes = (_NUM_INPUTS, _COLUMNS), (_ROWS, _COLUMNS), (_ROWS,)
    inputs, weights, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    expected = torch.nn.functional.linear(inputs.double(), weights.double(), bias.double())
    return float((kernel.multiply_plain(inputs, weights, bias) - expected).abs().max() / expected.abs().max())
