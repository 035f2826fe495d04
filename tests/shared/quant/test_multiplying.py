import pytest
import torch

from layermesh.shared.quant import multiplying
from layermesh.shared.quant.forms import padded
from layermesh.shared.quant.linear import PackedHead, QuantLinear
from layermesh.shared.quant.multiplying import MANY_ROWS, Way, choose_way, multiply
from layermesh.shared.quant.native.kernel import native_kernel
from layermesh.shared.quant.quants import Quants
from layermesh.shared.quant.tiles import packing_tile
from tests.shared.quant.test_quants import FORMS, some_quants

TILE = packing_tile()
# Sums are float32; inputs and results are rounded to bfloat16 (2^-9 each), and many rows see the weights so too, or in 8 bits.
TOLERANCE = 2**-7
TOLERANCE_IN_BYTES = 0.02


@pytest.fixture(params=["our kernel", "torch's kernel"])
def kernel(request, monkeypatch):
    """Multiply with the kernel in C, where it can be had, or without."""
    if request.param == "torch's kernel":
        monkeypatch.setattr(multiplying, "native_kernel", lambda: None)
    elif native_kernel() is None:
        pytest.skip("the kernel in C cannot be built here")


def relative_error(made: torch.Tensor, expected: torch.Tensor) -> float:
    return float((made.float() - expected).norm() / expected.norm())


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("num_rows", [1, 3, MANY_ROWS, MANY_ROWS + 17])
@pytest.mark.parametrize("rows", [64, 200, 1000])
def test_products_are_those_of_the_weights(form, num_rows, rows, monkeypatch, kernel):
    monkeypatch.setattr(multiplying, "UNPACKED_BYTES", 2 * form.group * 3 * TILE * 4)  # four tiles at a time
    quants = some_quants(form, rows, 3)
    inputs = torch.randn(num_rows, form.group * 3).to(torch.bfloat16)
    made = multiply(inputs, *quants.pack(TILE), form, TILE)
    assert made.dtype == torch.bfloat16
    assert made.shape == (num_rows, padded(rows))
    in_bytes = choose_way(num_rows, form, inputs.shape[1]) is Way.MANY
    tolerance = TOLERANCE_IN_BYTES if in_bytes else TOLERANCE
    assert relative_error(made[:, :rows], inputs.float() @ quants.dequantise().t()) < tolerance


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_planes_of_a_single_column_are_exact(form, kernel):
    quants = some_quants(form, 64, 2)
    of_row = torch.ones(64, dtype=torch.bfloat16) if form.nested else None
    whole = Quants(form, quants.values, torch.ones_like(quants.scale), torch.zeros_like(quants.zero), of_row)
    inputs = torch.eye(2 * form.group, dtype=torch.bfloat16)
    made = torch.cat([multiply(row[None], *whole.pack(TILE), form, TILE) for row in inputs])
    assert torch.equal(made.float().t(), whole.values.float() - form.offset)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_plain_torch_computes_the_same_for_layouts_and_devices_without_a_kernel(form, dtype, monkeypatch):
    monkeypatch.setattr(multiplying, "native_kernel", lambda: None)
    other_tile = 96 - TILE
    quants = some_quants(form, 130, 2)
    inputs = torch.randn(2, 5, form.group * 2).to(dtype)
    made = multiply(inputs, *quants.pack(other_tile), form, other_tile)
    assert made.shape == (2, 5, 192)
    assert made.dtype == dtype
    expected = inputs.float() @ quants.dequantise().t()
    assert relative_error(made[..., :130], expected) < {torch.float32: 1e-5}.get(dtype, TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_layer_stands_in_for_a_linear_one(dtype, kernel):
    quants = some_quants(FORMS[0], 100, 2)
    bias = torch.nn.Parameter(torch.randn(100).to(dtype), requires_grad=False)
    layer = QuantLinear(64, 100, quants.form, TILE, bias)
    assert layer.packed.is_meta
    assert set(layer.state_dict()) == {"packed", "scales", "bias"}
    layer.packed, layer.scales = quants.pack(TILE)
    inputs = torch.randn(2, 3, 64).to(dtype)
    expected = torch.nn.functional.linear(inputs.float(), quants.dequantise(), bias.float())
    assert layer(inputs).dtype == dtype
    assert relative_error(layer(inputs), expected) < TOLERANCE


def test_a_head_in_pieces_is_the_whole_head(kernel):
    quants = some_quants(FORMS[5], 300, 2)
    head = PackedHead(64, (0, 128, 300), quants.form, TILE, torch.nn.Parameter(torch.randn(300), requires_grad=False))
    for piece, rows in zip(head.pieces, (slice(0, 128), slice(128, 300)), strict=True):
        part = Quants(quants.form, quants.values[rows], quants.scale[rows], quants.zero[rows])
        piece.packed, piece.scales = part.pack(TILE)
    hidden = torch.randn(1, 64)
    expected = torch.nn.functional.linear(hidden, quants.dequantise(), head.bias)
    assert relative_error(head(hidden), expected) < TOLERANCE
    logits = torch.zeros(1, 300)
    head.project(1, hidden, logits)
    assert torch.equal(head(hidden)[:, 128:], logits[:, 128:])
    assert not logits[:, :128].any()


def test_weights_that_are_not_there_do_no_harm(kernel):
    layer = QuantLinear(64, 100, FORMS[0], TILE)
    assert layer.packed.is_meta
    assert layer(torch.randn(1, 64)).shape == (1, 100)
