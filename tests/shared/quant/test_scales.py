import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layermesh.shared.quant.forms import QuantForm, padded
from layermesh.shared.quant.quants import Quants, quants_of, widen
from layermesh.shared.quant.scales import as_pairs, nest, pack_scales, row_scale, unpack_scales, widen_for_zero

FORM = QuantForm(4, 32, nested=True)


@given(st.lists(st.floats(0, 2.0**99, width=32, allow_subnormal=False), min_size=2, max_size=8))
def test_no_scale_is_more_than_255_times_that_of_its_row(scales):
    scale = torch.tensor([scales, [0.0] * len(scales)])
    row = row_scale(scale)
    assert row.dtype is torch.bfloat16
    assert (255 * row.double() >= scale.double().amax(dim=1)).all()
    assert (row.double() <= scale.double().amax(dim=1) / 255 * (1 + 2**-7) + 1e-38).all()
    nested, zero = nest(scale, torch.zeros_like(scale), row)
    assert not nested[1].any()
    assert not zero.any()
    assert ((nested[0] - scale[0]).abs() <= row[0].float() * 1.01).all()


@given(st.integers(1, 130), st.integers(1, 5), st.sampled_from([32, 64]))
def test_what_is_packed_comes_out_again_also_at_the_ends(num_rows, num_groups, tile):
    generator = torch.Generator().manual_seed(num_rows)
    steps = torch.randint(1, 256, (num_rows, num_groups), generator=generator)
    sixteenths = torch.randint(-128, 128, (num_rows, num_groups), generator=generator)
    steps[0, 0], sixteenths[0, 0], sixteenths[-1, -1] = 255, -128, 127
    row = torch.rand(num_rows, generator=generator).add_(0.01).to(torch.bfloat16)
    scale = steps * row.float()[:, None]
    zero = sixteenths * (scale / 16)
    packed = pack_scales(scale, zero, row, tile)
    assert packed.shape == FORM.scales_shape(num_rows, 32 * num_groups)
    made = unpack_scales(packed, FORM, tile)
    for found, expected in zip(made, (scale, zero, row), strict=True):
        assert torch.equal(found[:num_rows], expected)
        assert not found[num_rows:].any()
    pairs = as_pairs(packed, FORM, tile)
    assert pairs.shape == (num_groups, padded(num_rows), 2)
    for number, expected in enumerate((scale, zero)):
        assert torch.allclose(pairs[:, :num_rows, number].t().float(), expected, rtol=2**-7, atol=1e-9)


@given(st.floats(-1e3, 1e3), st.floats(0, 1e3))
def test_zeros_reach_the_ranges_that_are_made_for_them(start, length):
    low, high = widen_for_zero(torch.tensor([start]), torch.tensor([start + length]))
    assert low <= min(start, 0) + 1e-3
    assert high >= max(start + length, 0) - 1e-3
    scale = (high - low) / 15
    if scale > 1e-6:
        assert -128.01 <= 16 * (low + 8 * scale) / scale <= 127.01


def test_scales_of_rows_belong_to_nested_forms_alone():
    values, numbers = torch.zeros(64, 32, dtype=torch.uint8), torch.ones(64, 1)
    with pytest.raises(ValueError, match="needs scales of rows"):
        Quants(FORM, values, numbers, numbers)
    with pytest.raises(ValueError, match="has no scales of rows"):
        Quants(QuantForm(4, 32), values, numbers, numbers, numbers.to(torch.bfloat16)[:, 0])
    with pytest.raises(ValueError, match="does not fit"):
        widen(quants_of(FORM, values, numbers, numbers), QuantForm(8, 32))
