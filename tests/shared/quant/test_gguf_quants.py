import gguf
import numpy as np
import pytest
import torch

from layermesh.shared.checkpoints.decoding import row_bytes
from layermesh.shared.quant.gguf_quants import KEPT_FORMS, keep_quants

COLUMNS = 512
HALVES = {"Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q6_K": (208,)}  # the others: (0, 2)


def random_rows(encoding: str, rows: int) -> np.ndarray:
    """Blocks of random quants under scales of a usual size."""
    rng = np.random.default_rng(5)
    block_elements, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[encoding]]
    blocks = rng.integers(0, 256, (rows * COLUMNS // block_elements, block_bytes), dtype=np.uint8)
    for start in HALVES.get(encoding, (0, 2)):
        blocks[:, start : start + 2] = rng.normal(0, 0.01, (len(blocks), 1)).astype(np.float16).view(np.uint8)
    return blocks.reshape(rows, row_bytes(encoding, COLUMNS))


def step_and_middle(encoding: str, raw: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights as gguf has them, and the largest size among the scale's multiples in each group."""
    weights = torch.from_numpy(gguf.dequantize(raw, gguf.GGMLQuantizationType[encoding]).copy())
    return weights, weights.view(len(raw), -1, KEPT_FORMS[encoding].group)


@pytest.mark.parametrize("encoding", KEPT_FORMS)
def test_quants_are_kept_and_only_scales_are_rounded(encoding):
    raw = random_rows(encoding, 64)
    quants = keep_quants(torch.from_numpy(raw), encoding)
    weights, groups = step_and_middle(encoding, raw)
    made = quants.dequantise().view(groups.shape)
    # what is off comes from two roundings to bfloat16, 2^-9 of the span about the middle and of the middle itself
    middle = quants.form.weight_of_zero * quants.zero.float().abs()[..., None]
    reach = (groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)) + middle
    assert ((made - groups).abs() <= reach * 2**-8 + 1e-6).all()
    assert float((made.view(weights.shape) - weights).norm() / weights.norm()) < 2**-8


@pytest.mark.parametrize("encoding", KEPT_FORMS)
def test_equal_weights_stay_equal_and_keep_their_order(encoding):
    raw = random_rows(encoding, 16)
    quants = keep_quants(torch.from_numpy(raw), encoding)
    _, groups = step_and_middle(encoding, raw)
    values = quants.values.view(groups.shape).float() * quants.scale.float().sign()[..., None]
    order = groups.double().argsort(dim=-1, stable=True)
    sorted_values, sorted_weights = values.gather(-1, order), groups.gather(-1, order)
    assert (sorted_values.diff(dim=-1)[quants.scale != 0] >= 0).all()
    assert torch.equal(sorted_values.diff(dim=-1)[quants.scale != 0] == 0, sorted_weights.diff(dim=-1)[quants.scale != 0] == 0)
