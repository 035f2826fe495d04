"""Weights that share words: GPTQ's, AWQ's and compressed-tensors' integers in int32, and pairs of 4-bit floats in a byte.

Words come decoded to float32, byte by byte, which holds them exactly.
"""

from collections.abc import Sequence
from typing import Final

import torch

from layermesh.shared.errors import CheckpointError
from layermesh.shared.model.scaled_values import ScaleGrid, apply_scale

WORD_BITS: Final = 32
_AWQ_ORDER: Final = (0, 4, 1, 5, 2, 6, 3, 7)  # where the values of a word lie in it
_FP4: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # E2M1; the fourth bit is the sign


def unpack_gptq(parts: Sequence[torch.Tensor], bits: int, width: int, zero_shift: int) -> torch.Tensor:
    """Return weights `[rows, columns]` of GPTQ's words and zeros, in groups of `width` columns unless an index is given.

    parts: words `[columns * bits / 32, rows]`, zeros `[groups, rows * bits / 32]`, scales `[groups, rows]`, and perhaps the
    group of each column. Raises CheckpointError for a group that does not exist.
    """
    words, zeros, scales, *order = parts
    quants = _split(_words(words), bits, 0)  # [columns, rows]
    zero = _split(_words(zeros), bits, 1) + zero_shift  # [groups, rows]
    groups = _groups(order[0], len(scales)) if order else torch.arange(len(quants)) // (len(quants) if width == -1 else width)
    return ((quants - zero[groups]) * scales[groups]).t()


def unpack_awq(parts: Sequence[torch.Tensor], width: int) -> torch.Tensor:
    """Return weights of AWQ's words `[columns, rows / 8]`, zeros `[groups, rows / 8]` and scales `[groups, rows]`."""
    words, zeros, scales = parts
    shifts = torch.tensor(_AWQ_ORDER, dtype=torch.int32) * 4
    quants, zero = (((_words(packed)[:, :, None] >> shifts) & 15).flatten(1) for packed in (words, zeros))
    groups = torch.arange(len(quants)) // (len(quants) if width == -1 else width)
    return ((quants - zero[groups]) * scales[groups]).t()


def unpack_compressed(
    words: torch.Tensor, scale: torch.Tensor, grid: ScaleGrid, bits: int, shape: tuple[int, int], zero: torch.Tensor | None
) -> torch.Tensor:
    """Return weights of `shape` from compressed-tensors' words `[rows, columns * bits / 32]`.

    `zero`, if there is one, is packed along the rows: `[rows * bits / 32, groups]`. Both are stored from 0 on, and mean a
    range around 0.
    """
    half = 1 << (bits - 1)
    quants = _split(_words(words), bits, 1)[:, : shape[1]].float().sub_(half)
    zeros = None if zero is None else _split(_words(zero), bits, 0)[: shape[0]].float() - half
    return apply_scale(quants, scale, grid, zeros)


def by_index(
    words: torch.Tensor, scale: torch.Tensor, index: torch.Tensor, bits: int, zero: torch.Tensor | None
) -> torch.Tensor:
    """Return weights of such words whose columns are in the groups that `index` says; scales are `[rows, groups]`."""
    half = 1 << (bits - 1)
    groups = _groups(index, scale.shape[1])
    quants = _split(_words(words), bits, 1)[:, : len(groups)].float().sub_(half)
    if zero is not None:
        quants -= (_split(_words(zero), bits, 0)[: len(quants)].float() - half)[:, groups]
    return quants.mul_(scale[:, groups])


def unpack_fp4(parts: Sequence[torch.Tensor], grid: ScaleGrid, *, divides: bool) -> torch.Tensor:
    """Return NVFP4's weights `[rows, columns]` of bytes `[rows, columns / 2]`, a scale per group and one for all.

    The scale for all divides the others in compressed-tensors and multiplies them in ModelOpt.
    """
    values, scale, overall = parts
    numbers = values.to(torch.uint8)
    nibbles = torch.stack([numbers & 15, numbers >> 4], -1).flatten(1).int()
    table = torch.tensor([*_FP4, *(-value for value in _FP4)])
    overall = overall.reshape(())
    return apply_scale(table[nibbles], scale / overall if divides else scale * overall, grid)


def check_stored_shape(stored: torch.Tensor, shape: tuple[int, int], name: str) -> None:
    """Raise CheckpointError where the shape stored beside a packed weight is another than its words and scales make."""
    if tuple(int(side) for side in stored.flatten().tolist()) != shape:
        raise CheckpointError(
            f"{name} says {stored.flatten().tolist()} where the words beside it make {list(shape)}: the files do not belong "
            "together. Fetch the model again."
        )


def _words(decoded: torch.Tensor) -> torch.Tensor:
    return decoded.to(torch.uint8).contiguous().view(torch.int32)


def _split(words: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """Return the values of the words `[m, n]`, lowest bits first, which follow each other in `dim`."""
    shifts = torch.arange(WORD_BITS // bits, dtype=torch.int32) * bits
    values = (words.unsqueeze(dim + 1) >> (shifts[:, None] if dim == 0 else shifts)).bitwise_and_((1 << bits) - 1)
    return values.flatten(dim, dim + 1)


def _groups(index: torch.Tensor, num_groups: int) -> torch.Tensor:
    groups = index.long()
    if groups.numel() and (int(groups.min()) < 0 or int(groups.max()) >= num_groups):
        raise CheckpointError(f"an index of columns names a group beyond the {num_groups} that have scales. Fetch it again.")
    return groups
