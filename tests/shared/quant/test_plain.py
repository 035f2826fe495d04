"""Products of single tokens with plain matrices: right, and the same whoever else there is."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layermesh.shared.quant import plain
from layermesh.shared.quant.native.kernel import native_kernel
from layermesh.shared.quant.plain import MANY_ROWS, multiply, multiply_several, suits, suits_several

pytestmark = pytest.mark.skipif(native_kernel() is None, reason="there is no C compiler")
TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 5e-3}  # of the largest result; bfloat16 rounds it once


def made(num, rows, columns, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (num, columns), (rows, columns), (rows,)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCES)
@given(num=st.integers(1, 9), rows=st.integers(1, 70), columns=st.integers(1, 9))
def test_products_are_right(dtype, has_bias, num, rows, columns):
    inputs, weights, bias = made(num, rows, 32 * columns, dtype)
    results = multiply(inputs, weights, bias if has_bias else None)
    expected = torch.nn.functional.linear(inputs.double(), weights.double(), bias.double() if has_bias else None)
    assert results.dtype is dtype
    assert results.shape == (num, rows)
    assert float((results.double() - expected).abs().max()) <= TOLERANCES[dtype] * max(float(expected.abs().max()), 1.0)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("num", [2, MANY_ROWS - 1, MANY_ROWS, MANY_ROWS + 5])
def test_products_of_several_tokens_are_right(monkeypatch, num, has_bias):
    monkeypatch.setattr(plain, "WIDENED_BYTES", 4 * 96 * 7)  # seven rows of the matrix at a time
    inputs, weights, bias = made(num, 30, 96, torch.bfloat16)
    results = multiply_several(inputs.view(1, num, 96), weights, bias if has_bias else None)
    expected = torch.nn.functional.linear(inputs.double(), weights.double(), bias.double() if has_bias else None)
    assert results.dtype is torch.bfloat16
    assert results.shape == (1, num, 30)
    assert float((results[0].double() - expected).abs().max()) <= TOLERANCES[torch.bfloat16] * float(expected.abs().max())


def test_several_tokens_are_torchs_where_the_processor_does_them_well(monkeypatch):
    inputs, weights, _ = made(5, 8, 64, torch.bfloat16)
    for does in (True, False):
        monkeypatch.setattr(plain, "multiplies_bfloat16", lambda does=does: does)
        assert suits_several(inputs, weights) == (not does)
        assert not suits_several(inputs.float(), weights.float())
        assert not suits_several(inputs[:0], weights)
        assert not suits_several(inputs, weights.to("meta"))


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("rows", "columns"), [(1001, 1536), (64, 8960), (3, 32)])
def test_a_token_gets_the_same_bits_alone_and_among_others(dtype, rows, columns, num_threads):
    before = torch.get_num_threads()
    inputs, weights, bias = made(17, rows, columns, dtype)
    alone = torch.cat([multiply(inputs[i : i + 1], weights, bias) for i in range(17)])
    try:
        torch.set_num_threads(num_threads)
        for num in range(1, 18):
            assert torch.equal(multiply(inputs[:num], weights, bias), alone[:num])
    finally:
        torch.set_num_threads(before)


def test_other_shapes_than_a_token_and_other_matrices_are_left_to_torch():
    inputs, weights, _ = made(1, 8, 64, torch.float32)
    assert suits(inputs, weights)
    assert suits(inputs.view(1, 1, 64), weights)
    assert not suits(inputs.expand(2, 64), weights)
    assert not suits(inputs.bfloat16(), weights)
    assert not suits(inputs.half(), weights.half())
    assert not suits(inputs[:, :63], weights[:, :63])
    assert not suits(inputs, weights[:, :63])
    assert not suits(inputs.to("meta"), weights)
    assert not suits(inputs, weights.to("meta"))
    assert not suits(inputs[:, :32], weights)
    assert suits(inputs, weights, torch.zeros(8))
    assert not suits(inputs, weights, torch.zeros(8).double())
    assert not suits(inputs, weights, torch.zeros(16)[::2])


def test_numbers_that_are_none_and_infinite_ones_come_out_as_such():
    inputs, weights, _ = made(1, 8, 64, torch.bfloat16)
    inputs[0, 5] = float("nan")
    assert multiply(inputs, weights, None).isnan().all()
    inputs[0, 5] = float("inf")
    assert multiply(inputs, weights, None).isinf().all()
