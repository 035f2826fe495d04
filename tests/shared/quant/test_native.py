import pytest
import torch

from layermesh.shared.quant.around import Around
from layermesh.shared.quant.forms import QuantForm, padded
from layermesh.shared.quant.gguf_quants import KEPT_FORMS, keep_quants
from layermesh.shared.quant.native import building
from layermesh.shared.quant.native.building import built_library
from layermesh.shared.quant.native.kernel import CHUNK, NativeKernel, load_kernel
from layermesh.shared.quant.native.structures import Matrix
from tests.shared.quant.kernels import COMPILER, needs_compiler, relative_error, some_heads
from tests.shared.quant.test_gguf_quants import random_rows
from tests.shared.quant.test_quants import FORMS, some_quants

LARGEST = 32639  # of the whole numbers that inputs become

pytestmark = needs_compiler


def exact_products(inputs: torch.Tensor, quants, group: int) -> torch.Tensor:
    """What the kernel computes, in whole numbers and float64: inputs in 16 bits under a scale for each group."""
    groups = inputs.float().view(len(inputs), -1, group)
    largest = groups.abs().amax(-1, keepdim=True)
    whole = (groups * torch.full_like(largest, LARGEST).div(largest)).round().double() * (largest / LARGEST).double()
    weights = quants.dequantise().double().view(len(quants.values), -1, group)
    return torch.einsum("tgk,rgk->tr", whole, weights)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("tile", [32, 64])
@pytest.mark.parametrize("num_rows", [1, 2, 4, 5, 11])
def test_products_are_exact_but_for_float32_sums(native, form, tile, num_rows):
    quants = some_quants(form, 200, 5)
    inputs = torch.randn(num_rows, 5 * form.group) * 10 ** torch.randn(num_rows, 1)
    made = native.product(inputs, *quants.pack(tile), form, tile)
    assert made.shape == (num_rows, padded(200))
    assert relative_error(made[:, :200], exact_products(inputs, quants, form.group)) < 1e-6
    assert not made[:, 200:].any()
    assert relative_error(made[:, :200], inputs.double() @ quants.dequantise().double().t()) < 1e-4


@pytest.mark.parametrize("encoding", KEPT_FORMS)
def test_gguf_quants_multiply_as_they_dequantise(native, encoding):
    quants = keep_quants(torch.from_numpy(random_rows(encoding, 96)), encoding)
    inputs = torch.randn(3, quants.values.shape[1])
    made = native.product(inputs, *quants.pack(64), quants.form, 64)
    assert relative_error(made[:, :96], exact_products(inputs, quants, quants.form.group)) < 1e-6


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_the_largest_sums_do_not_overflow(native, bits):
    form = QuantForm(bits, 256 if bits == 4 else 128)
    quants = some_quants(form, 64, 2)
    quants.values[:] = 2**bits - 1
    for inputs in (torch.ones(1, 2 * form.group), -torch.ones(1, 2 * form.group)):
        made = native.product(inputs, *quants.pack(64), form, 64)
        assert relative_error(made, exact_products(inputs, quants, form.group)) < 1e-6


@pytest.mark.parametrize("form", FORMS[::3], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_same_bits_alone_among_others_and_on_any_number_of_threads(native, form, dtype):
    quants = some_quants(form, 1000, 12)
    packed = quants.pack(64)
    inputs = torch.randn(9, 12 * form.group).to(dtype)
    before = torch.get_num_threads()
    try:
        made = []
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            made.append(native.product(inputs, *packed, form, 64))
    finally:
        torch.set_num_threads(before)
    alone = torch.cat([native.product(row[None], *packed, form, 64) for row in inputs])
    assert made[0].dtype == dtype
    assert all(torch.equal(alone, together) for together in made)


def test_bfloat16_results_are_rounded_to_the_nearest(native):
    quants = some_quants(FORMS[0], 64, 4)
    inputs = torch.randn(5, 128).to(torch.bfloat16)
    exact = native.product(inputs.float(), *quants.pack(64), FORMS[0], 64)
    assert torch.equal(native.product(inputs, *quants.pack(64), FORMS[0], 64), exact.to(torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_with_inputs_that_are_no_numbers_give_none(native, dtype):
    quants = some_quants(FORMS[0], 64, 2)
    inputs = torch.ones(5, 64).to(dtype)
    inputs[0, 3], inputs[1, 40], inputs[2, 63] = float("nan"), float("inf"), float("-inf")
    inputs[4] = 0
    made = native.product(inputs, *quants.pack(64), FORMS[0], 64)
    assert made[:3].isnan().all()
    assert made[3].isfinite().all()
    assert not made[4].any()


MANY = [form for form in FORMS if form.bits == 4]


def products_in_bytes(inputs: torch.Tensor, quants) -> torch.Tensor:
    """What the kernel computes for many rows, in float64: inputs and weights in 8 bits under a scale for each chunk."""
    chunks = inputs.float().view(len(inputs), -1, CHUNK)
    largest = chunks.abs().amax(-1, keepdim=True)
    whole = (chunks * torch.full_like(largest, 127).div(largest)).round().double() * (largest / 127).double()
    rows, group = len(quants.values), quants.form.group
    step, zero = quants.scale.double()[..., None], quants.zero.double()[..., None]
    ends = torch.maximum((zero - 8 * step).abs(), (zero + 7 * step).abs()).expand(rows, -1, group)
    limits = ends.reshape(rows, -1, CHUNK).amax(-1, keepdim=True)
    weights = (quants.dequantise().double().view(rows, -1, CHUNK) * 127 / limits).round() * limits / 127
    return torch.einsum("tck,rck->tr", whole, weights)


@pytest.mark.parametrize("form", MANY, ids=str)
@pytest.mark.parametrize("tile", [32, 64])
@pytest.mark.parametrize("num_rows", [1, 12, 31])
def test_many_products_are_those_of_inputs_and_weights_in_8_bits(native, form, tile, num_rows):
    quants = some_quants(form, 200, 1024 // form.group)
    inputs = torch.randn(num_rows, 1024) * 10 ** torch.randn(num_rows, 1)
    made = native.product(inputs, *quants.pack(tile), form, tile, many=True)
    assert made.shape == (num_rows, padded(200))
    assert relative_error(made[:, :200], products_in_bytes(inputs, quants)) < 3e-4  # weights on an edge may go either way
    assert not made[:, 200:].any()
    assert relative_error(made[:, :200], inputs.double() @ quants.dequantise().double().t()) < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_rows_have_the_same_bits_alone_among_others_and_on_any_number_of_threads(native, dtype):
    quants = some_quants(FORMS[0], 1000, 12)
    packed, inputs = quants.pack(64), torch.randn(40, 12 * 32).to(dtype)
    before = torch.get_num_threads()
    try:
        made = []
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            made.append(native.product(inputs, *packed, FORMS[0], 64, many=True))
    finally:
        torch.set_num_threads(before)
    alone = torch.cat([native.product(row[None], *packed, FORMS[0], 64, many=True) for row in inputs])
    assert all(torch.equal(alone, together) for together in made)


@pytest.mark.parametrize("where", ["scale", "zero"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_many_rows_show_weights_that_are_no_numbers(native, where, bad):
    quants = some_quants(FORMS[0], 64, 4)
    getattr(quants, where)[7, 2] = bad
    made = native.product(torch.randn(40, 128), *quants.pack(64), FORMS[0], 64, many=True)
    assert not made[:, 7].isfinite().any()
    assert made[:, :7].isfinite().all()


def test_many_rows_with_inputs_that_are_no_numbers_give_none(native):
    quants = some_quants(FORMS[0], 64, 4)
    inputs = torch.ones(14, 128)
    inputs[0, 3], inputs[13, 70], inputs[2] = float("nan"), float("inf"), 0
    made = native.product(inputs, *quants.pack(64), FORMS[0], 64, many=True)
    assert made[[0, 13]].isnan().all()
    assert made[1].isfinite().all()
    assert not made[2].any()


# What torch says a processor can do, where code for the kind runs. It knows of no kind between the last two.
RUNNING = {"x86-64": ("DEFAULT", "AVX2", "AVX512"), "haswell": ("AVX2", "AVX512"), "cascadelake": ("AVX512",)}


@pytest.mark.parametrize("target", RUNNING)
def test_code_for_lesser_processors_gives_the_same_bits(native, target, tmp_path, monkeypatch):
    flags = [f"-march={target}" if flag == "-march=native" else flag for flag in building._FLAGS]
    if torch.backends.cpu.get_cpu_capability() not in RUNNING[target]:
        pytest.skip("this processor cannot run it")
    monkeypatch.setattr(building, "_FLAGS", flags)
    lesser = load_kernel(built_library(tmp_path / "kernel", COMPILER))
    assert lesser is not None
    assert lesser.has_fast_many == (target != "x86-64")
    for form in FORMS:
        for tile in (32, 64):
            packed, inputs = some_quants(form, 128, 4).pack(tile), torch.randn(5, 4 * form.group)
            inputs[3] = inputs[3].sign()  # all of them as large as can be
            for many in (False, True) if lesser.has_fast_many and form.bits == 4 else (False,):
                ours, theirs = (each.product(inputs, *packed, form, tile, many=many) for each in (native, lesser))
                assert torch.equal(ours, theirs)
    surrounded = [_run_around(kernel) for kernel in (native, lesser)]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*surrounded, strict=True))


def _run_around(kernel: NativeKernel) -> list[torch.Tensor]:
    """All that is not a product, on the same random numbers."""
    torch.manual_seed(11)
    matrix = Matrix(FORMS[0], 64, 256, 256, torch.float32, 128, gated=True, epsilon=1e-5)
    packed, scales = some_quants(FORMS[0], 256, 8).pack(64)
    gated, bias, around = torch.empty(5, 128), torch.randn(256), Around(torch.rand(256), 1e-5, True, torch.randn(5, 128))
    kernel.prepare(matrix, many=False)(packed, scales, torch.randn(5, 256), 5, gated, 0, around, bias)
    heads = some_heads(torch.float32)
    states, angles = torch.randn(1, 5, heads.width), torch.randn(1, 5, 64)
    kernel.turn(heads, states, (angles.cos(), angles.sin()), torch.rand(64), torch.rand(64))
    keys, values, found = torch.randn(1, 2, 50, 64), torch.randn(1, 2, 50, 64), torch.empty(1, 1, 6 * 64)
    kernel.attend(heads, torch.randn(1, 6, 1, 64), keys, values, found)
    return [gated, states, found]
