"""What the kernel in C does around products and between them, beside what torch makes of it."""

import pytest
import torch

from layermesh.shared.model.lean_layer import Turner
from layermesh.shared.quant.around import Around
from layermesh.shared.quant.forms import QuantForm
from layermesh.shared.quant.linear import QuantLinear
from tests.shared.quant.kernels import needs_compiler, relative_error, some_heads
from tests.shared.quant.test_quants import FORMS, some_quants

pytestmark = needs_compiler


def around_by_torch(native, layer, inputs: torch.Tensor, around: Around, many: bool) -> torch.Tensor:
    """Norm, product, bias, gate and residual one after the other, in float32."""
    as_floats = [None if tensor is None else tensor.float() for tensor in (around.norm, around.residual)]
    floats = Around(as_floats[0], around.epsilon, around.is_gated, as_floats[1])
    normed = floats.prepare(inputs.float())
    made = native.product(normed, layer.packed, layer.scales, layer.form, layer.tile, many=many)
    return floats.finish(made[:, : layer.out_features] + layer.bias.float())


@pytest.mark.parametrize("many", [False, True], ids=["few", "many"])
@pytest.mark.parametrize("is_gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("rows", [128, 256 + 72])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", [QuantForm(4, 32), QuantForm(4, 32, nested=True)], ids=str)
def test_what_surrounds_a_product_is_done_on_the_way(native, form, dtype, rows, is_gated, many):
    if is_gated and rows % 128:
        rows = 256
    quants = some_quants(form, rows, 8)
    for numbers in (quants.scale, quants.zero, quants.row_scale):
        if numbers is not None:
            numbers.mul_(0.125)
    bias = torch.nn.Parameter(torch.randn(rows).to(dtype), requires_grad=False)
    layer = QuantLinear(256, rows, form, 64, bias)
    layer.packed, layer.scales = quants.pack(64)
    inputs = torch.randn(40 if many else 5, 256).to(dtype)
    used = rows // 2 if is_gated else rows
    around = Around(torch.rand(256).to(dtype), 1e-5, is_gated, torch.randn(len(inputs), used).to(dtype))
    made, expected = layer(inputs, around), around_by_torch(native, layer, inputs, around, many)
    assert made.shape == (len(inputs), used)
    assert made.dtype == dtype
    assert relative_error(made, expected.double()) < (1e-4 if dtype is torch.float32 else 3e-3)


@pytest.mark.parametrize("num_rows", [1, 40])
def test_results_come_into_the_columns_that_are_asked_for(native, num_rows):
    layer = QuantLinear(64, 100, FORMS[0], 64)
    layer.packed, layer.scales = some_quants(FORMS[0], 100, 2).pack(64)
    inputs, wide = torch.randn(1, num_rows, 64), torch.full((1, num_rows, 150), 7.0)
    layer(inputs, into=wide, column=30)
    assert torch.equal(wide[..., 30:130], layer(inputs))
    assert (wide[..., :30] == 7).all()
    assert (wide[..., 130:] == 7).all()


@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize("turned", [64, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_are_turned_as_the_lean_layer_turns_them(native, dtype, turned, has_norms):
    heads, num_tokens = some_heads(dtype, turned=turned), 7
    states = torch.randn(1, num_tokens, heads.width).to(dtype)
    angles = torch.randn(1, num_tokens, turned // 2).repeat(1, 1, 2)
    phases = angles.cos().to(dtype), angles.sin().to(dtype)
    norms = [torch.rand(64).to(dtype) if has_norms else None for _ in range(2)]
    by_head = states.clone().float().view(1, num_tokens, -1, 64)
    for part, norm in zip((by_head[:, :, :6], by_head[:, :, 6:8]), norms, strict=True):
        part.copy_(Around(None if norm is None else norm.float(), 1e-6).prepare(part))
    expected = torch.cat([Turner().turn(by_head[:, :, :8], tuple(phase.float() for phase in phases)), by_head[:, :, 8:]], dim=2)
    native.turn(heads, states, phases, *norms)
    assert relative_error(states.view_as(expected), expected.double()) < (1e-6 if dtype is torch.float32 else 3e-3)


@pytest.mark.parametrize("num", [1, 5, 700])
@pytest.mark.parametrize("each", [2, 3, 4, 7])  # queries of a head of keys, which look at it three at a time
@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_queries_find_what_torch_finds(native, dtype, size, each, num):
    heads = some_heads(dtype, size, size, 2 * each)
    query = 3 * torch.randn(1, 2 * each, 1, size).to(dtype)
    keys, values = torch.randn(2, 1, 2, num + 9, size).to(dtype)[:, :, :, :num]
    found = torch.empty(1, 1, 2 * each * size, dtype=dtype)
    native.attend(heads, query, keys, values, found)
    grouped = query.double().view(1, 2, each, size)
    expected = torch.nn.functional.scaled_dot_product_attention(grouped, keys.double(), values.double(), scale=size**-0.5)
    assert relative_error(found.view(-1), expected.reshape(-1)) < (2e-6 if dtype is torch.float32 else 3e-3)
