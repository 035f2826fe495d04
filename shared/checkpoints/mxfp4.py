"""MXFP4 as OpenAI publishes it: values of 4 bits (E2M1), 32 of them under a power of two (E8M0).

GGUF files store the same numbers in another order of nibbles; `gguf` decodes those.
"""

from functools import cache
from typing import Final

import torch

GROUP_VALUES: Final = 32
GROUP_BYTES: Final = 16
_NO_NUMBER: Final = 255  # what E8M0 has in place of a NaN
_VALUES: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_LEAST_POWER: Final = 0x00400000  # the bits of 2**-127, which float32 holds as a subnormal number
_MANTISSA_BITS: Final = 23


def decode_mxfp4(groups: torch.Tensor, scales: torch.Tensor, out: torch.Tensor) -> None:
    """Decode `groups` under `scales` into `out`, cast to its dtype.

    groups: uint8 [num_groups, 16], the lower nibble of a byte first; scales: uint8 [num_groups]; out: contiguous, of
    32 * num_groups values. Raises ValueError for a scale that is no number.
    """
    if bool((scales == _NO_NUMBER).any()):
        raise ValueError("a scale of 255, which is no number")
    values = out if out.dtype == torch.float32 else torch.empty(out.numel())
    torch.index_select(_values_of_bytes(), 0, groups.reshape(-1).int(), out=values.view(-1).view(torch.int64))
    values.view(-1, GROUP_VALUES).mul_(_powers(scales)[:, None])
    if values is not out:
        out.copy_(values.view(out.shape))


@cache
def _values_of_bytes() -> torch.Tensor:
    """Return the two values of every byte, two float32 in each int64 [256], which are found five times as fast."""
    values, numbers = torch.tensor(_VALUES), torch.arange(256)
    return torch.stack([values[numbers & 15], values[numbers >> 4]], dim=-1).view(torch.int64).view(-1)


def _powers(scales: torch.Tensor) -> torch.Tensor:
    """Return 2**(scale - 127), float32, made of its bits, so that no rounding is a library's choice."""
    bits = scales.int() << _MANTISSA_BITS
    return bits.masked_fill_(scales == 0, _LEAST_POWER).view(torch.float32)
