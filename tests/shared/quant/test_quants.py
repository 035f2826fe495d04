import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layermesh.shared.quant import choosing
from layermesh.shared.quant.choosing import choose_form, head_size
from layermesh.shared.quant.forms import QuantForm, padded
from layermesh.shared.quant.quants import Quants, quants_of, unpack
from layermesh.shared.quant.rounding import round_weights
from layermesh.shared.quant.tiles import KERNEL_TILES, kernel_tile, pack_digits, unpack_digits

FORMS = [QuantForm(4, group) for group in (32, 64, 128, 256)] + [QuantForm(8, group) for group in (16, 32, 64, 128)]
FORMS += [QuantForm(4, group, nested=True) for group in (32, 64, 128, 256)]
FORMS += [QuantForm(6, group) for group in (16, 32, 64, 128)]


def some_quants(form: QuantForm, rows: int, num_groups: int, seed: int = 0) -> Quants:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 2**form.bits, (rows, num_groups * form.group), generator=generator, dtype=torch.uint8)
    scale, zero = torch.randn(2, rows, num_groups, generator=generator)
    return quants_of(form, values, scale, zero)


@given(st.sampled_from(FORMS), st.integers(1, 200), st.integers(1, 4), st.sampled_from([32, 64]))
def test_what_is_packed_comes_out_again(form, rows, num_groups, tile):
    quants = some_quants(form, rows, num_groups)
    packed, scales = quants.pack(tile)
    columns = quants.values.shape[1]
    assert tuple(packed.shape) == form.packed_shape(rows, columns)
    assert tuple(scales.shape) == form.scales_shape(rows, columns)
    assert packed.nbytes + scales.nbytes == form.num_bytes(rows, columns)
    found = unpack(packed, scales, form, tile)
    assert torch.equal(found.values[:rows], quants.values)
    assert torch.equal(found.dequantise()[:rows], quants.dequantise())
    assert not found.dequantise()[rows:].any()
    assert len(found.values) == padded(rows)


@given(st.integers(1, 3), st.integers(1, 20), st.sampled_from([32, 64]))
def test_digits_are_tiles_of_columns(num_tiles, half_columns, tile):
    digits = torch.randint(0, 16, (num_tiles * 64, half_columns * 2), dtype=torch.uint8)
    packed = pack_digits(digits, tile)
    assert torch.equal(unpack_digits(packed, tile), digits)
    first_column = packed.flatten()[: tile // 2]
    assert torch.equal(first_column & 15, digits[: tile // 2, 0])
    assert torch.equal(first_column >> 4, digits[tile // 2 : tile, 0])


@pytest.mark.skipif(kernel_tile() is None, reason="this processor has no fast int4 kernel")
def test_the_layout_is_that_of_torch():
    digits = torch.randint(0, 16, (192, 64), dtype=torch.uint8)
    theirs = torch.ops.aten._convert_weight_to_int4pack_for_cpu(digits.int(), 1)
    assert torch.equal(pack_digits(digits, kernel_tile()), theirs)
    assert kernel_tile() in KERNEL_TILES.values()


@pytest.mark.parametrize(
    ("columns", "wanted", "group"), [(256, 128, 128), (192, 128, 64), (96, 128, 32), (256, 32, 32), (40, 128, None)]
)
def test_the_largest_group_that_divides_the_columns_is_taken(columns, wanted, group):
    form = choose_form(4, wanted, columns)
    assert (form.group if form else None) == group


@pytest.mark.parametrize("kernel", [None, object()])
def test_forms_of_our_own_are_chosen_where_our_kernel_reads_them(monkeypatch, kernel):
    monkeypatch.setattr(choosing, "native_kernel", lambda: kernel)
    assert choose_form(4, 32, 64) == QuantForm(4, 32, nested=kernel is not None)
    assert choose_form(8, 32, 64) == QuantForm(8, 32)
    assert head_size(4, 32, is_delicate=False) == ((8, 128) if kernel is None else (6, 64))
    assert head_size(4, 32, is_delicate=True) == (8, 128)
    assert head_size(8, 32, is_delicate=False) == (8, 32)


def test_forms_that_no_kernel_takes_are_refused():
    for bits, group in ((4, 16), (8, 256), (6, 256), (5, 32), (4, 48)):
        with pytest.raises(ValueError, match=f"{bits} bits in groups of {group}"):
            QuantForm(bits, group)
    for bits in (6, 8):
        with pytest.raises(ValueError, match="nested"):
            QuantForm(bits, 32, nested=True)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_rounding_is_off_by_half_a_step_at_most(form):
    weights = torch.randn(70, form.group * 3, generator=torch.Generator().manual_seed(1))
    groups = weights.view(70, 3, form.group)
    step = (groups.amax(-1) - groups.amin(-1)) / (2**form.bits - 1)
    quants = round_weights(weights, form)
    error = (quants.dequantise() - weights).view(groups.shape)
    # values spread evenly over a step are off by 0.29 of it; bfloat16 keeps a scale to 1/256, so that a step may be larger
    assert float((error.square().mean(-1).sqrt() / step).mean()) <= 0.32
    if form.bits == 8:
        assert (error.abs().amax(-1) <= step * 1.05).all()


def test_rounding_finds_what_was_quantised_before():
    quants = some_quants(QuantForm(4, 32), 64, 4)  # not nested: zeros far from their groups would not be found
    quants.values[:, ::32], quants.values[:, 1::32] = 0, 15
    found = round_weights(quants.dequantise(), quants.form)
    assert torch.allclose(found.dequantise(), quants.dequantise(), rtol=2**-7, atol=2**-6)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("weight", [0.5, -0.5])
def test_constant_groups_are_kept_and_broken_ones_refused(form, weight):
    weights = torch.full((64, 256), weight)
    assert torch.allclose(round_weights(weights, form).dequantise(), weights, rtol=2**-8)
    assert not round_weights(torch.zeros(64, 256), form).dequantise().any()
    weights[3, 3] = float("nan")
    with pytest.raises(ValueError, match="not a number"):
        round_weights(weights, form)


@pytest.mark.parametrize("group", [32, 64, 128, 256])
@pytest.mark.parametrize("times", [1e-30, 1e-3, 1, 1e4])
def test_nested_scales_round_as_well_as_bfloat16(group, times):
    """Also for rows and groups of different sizes, and for some all of whose weights are positive."""
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(64, 1024, generator=generator) * torch.rand(64, 1, generator=generator) * times
    weights[::2].view(32, -1, group)[:] *= torch.rand(32, 1024 // group, 1, generator=generator)
    plain, nested = (
        round_weights(weights, QuantForm(4, group, nested=nested)).dequantise().sub(weights).norm() for nested in (False, True)
    )
    assert nested <= 1.01 * plain
    raised = weights + 2 * weights.abs().amax(dim=1, keepdim=True)
    error = round_weights(raised, QuantForm(4, group, nested=True)).dequantise().sub(raised).square().mean(dim=1).sqrt()
    assert (error <= raised.amax(dim=1) / 15 * 0.32).all()
