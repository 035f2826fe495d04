"""GGUF's quantised blocks with their quants kept: the same numbers in the order of the kernel, under bfloat16 scales.

The layouts of the blocks are those of ggml (https://github.com/ggml-org/ggml, ggml-common.h).
"""

from collections.abc import Callable
from typing import Final

import torch

from layermesh.shared.quant.forms import QuantForm
from layermesh.shared.quant.quants import Quants

_INT4: Final = QuantForm(4, 32)
_INT8: Final = QuantForm(8, 32)
_INT8_FINE: Final = QuantForm(8, 16)
_MOST: Final = 119  # the largest 8-bit quant that two digits of -8 to 7 reach without help of the zero

_Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # quants [blocks, groups, group], scale and middle [blocks, groups]

KEPT_FORMS: Final = {
    "Q4_0": _INT4, "Q4_1": _INT4, "Q4_K": _INT4,
    "Q5_0": _INT8, "Q5_1": _INT8, "Q5_K": _INT8, "Q8_0": _INT8, "Q6_K": _INT8_FINE,
}  # fmt: skip


def keep_quants(raw: torch.Tensor, encoding: str) -> Quants:
    """Return the quants of `raw`, uint8 `[rows, row bytes]` in a GGUF `encoding` of `KEPT_FORMS`."""
    from layermesh.shared.checkpoints.decoding import block_size

    form = KEPT_FORMS[encoding]
    blocks = raw.reshape(-1, block_size(encoding)[1])
    values, scale, middle = _READERS[encoding](blocks)
    rows = len(raw)
    zero = (middle / form.weight_of_zero).to(torch.bfloat16)
    return Quants(form, values.reshape(rows, -1), scale.to(torch.bfloat16).reshape(rows, -1), zero.reshape(rows, -1))


def _q4_0(blocks: torch.Tensor) -> _Parts:
    scale = _halves(blocks, 0)
    return _nibbles(blocks[:, 2:])[:, None], scale, torch.zeros_like(scale)


def _q4_1(blocks: torch.Tensor) -> _Parts:
    scale = _halves(blocks, 0)
    return _nibbles(blocks[:, 4:])[:, None], scale, _halves(blocks, 2) + 8 * scale


def _q5_0(blocks: torch.Tensor) -> _Parts:
    scale = _halves(blocks, 0)
    return _fifth_bits(blocks, 2)[:, None] + 120, scale, torch.zeros_like(scale)  # quant 16, the zero, becomes 136


def _q5_1(blocks: torch.Tensor) -> _Parts:
    scale = _halves(blocks, 0)
    return _fifth_bits(blocks, 4)[:, None] + 120, scale, _halves(blocks, 2) + 16 * scale


def _q8_0(blocks: torch.Tensor) -> _Parts:
    scale = _halves(blocks, 0).to(torch.bfloat16).float()
    quants = blocks[:, 2:].view(torch.int8).to(torch.int16)
    low, high = quants.amin(dim=1, keepdim=True), quants.amax(dim=1, keepdim=True)
    # The zero of most blocks is 0; where large quants need it, it is the scale itself, which adds 17 steps.
    shift = torch.where(high <= _MOST, 136, torch.where(low >= -_MOST, _MOST, 128))
    return (quants + shift).to(torch.uint8)[:, None], scale, scale * (136 - shift)


def _q4_k(blocks: torch.Tensor) -> _Parts:
    scale, least = _k_scales(blocks)
    quants = blocks[:, 16:].reshape(-1, 4, 1, 32)
    return torch.cat([quants & 15, quants >> 4], dim=2).view(-1, 8, 32), scale, 8 * scale - least


def _q5_k(blocks: torch.Tensor) -> _Parts:
    scale, least = _k_scales(blocks)
    quants = blocks[:, 48:].reshape(-1, 4, 1, 32)
    low = torch.cat([quants & 15, quants >> 4], dim=2).view(-1, 8, 32)
    high = (blocks[:, 16:48].reshape(-1, 1, 32) >> torch.arange(8, dtype=torch.uint8)[:, None]) & 1
    return (low | (high << 4)) + 120, scale, 16 * scale - least


def _q6_k(blocks: torch.Tensor) -> _Parts:
    low, high = blocks[:, :128].reshape(-1, 2, 1, 64), blocks[:, 128:192].reshape(-1, 2, 1, 32)
    low = torch.cat([low & 15, low >> 4], dim=2).view(-1, 8, 32)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    high = ((high >> shifts) & 3).view(-1, 8, 32)
    scale = _halves(blocks, 208) * blocks[:, 192:208].view(torch.int8).float()
    return ((low | (high << 4)) + 104).view(-1, 16, 16), scale, torch.zeros_like(scale)  # quant 32, the zero, becomes 136


def _k_scales(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and minima of the eight groups of a block, whose six bits each are spread over twelve bytes."""
    first, second, third = blocks[:, 4:16].reshape(-1, 3, 4).unbind(dim=1)
    scales = torch.cat([first & 63, (third & 15) | ((first >> 2) & 48)], dim=1)
    least = torch.cat([second & 63, (third >> 4) | ((second >> 2) & 48)], dim=1)
    return _halves(blocks, 0) * scales.float(), _halves(blocks, 2) * least.float()


def _fifth_bits(blocks: torch.Tensor, start: int) -> torch.Tensor:
    """Five-bit quants: four bytes of fifth bits from `start` on, then nibbles."""
    high = (blocks[:, start : start + 4, None] >> torch.arange(8, dtype=torch.uint8)) & 1  # [blocks, 4, 8]
    return _nibbles(blocks[:, start + 4 :]) | (high.reshape(-1, 32) << 4)


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    """The low nibbles of 16 bytes, then the high ones."""
    return torch.cat([packed & 15, packed >> 4], dim=1)


def _halves(blocks: torch.Tensor, start: int) -> torch.Tensor:
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


_READERS: Final[dict[str, Callable[[torch.Tensor], _Parts]]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q4_K": _q4_k,
    "Q5_0": _q5_0, "Q5_1": _q5_1, "Q5_K": _q5_k, "Q8_0": _q8_0, "Q6_K": _q6_k,
}  # fmt: skip
