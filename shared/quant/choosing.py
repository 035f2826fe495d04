"""Which form this machine packs weights in: what our kernel reads, or torch's where that cannot be built."""

from typing import Final

from layermesh.shared.quant.forms import QuantForm
from layermesh.shared.quant.native.kernel import native_kernel
from layermesh.shared.quant.sizes import GROUP_SIZES

# Of a head where the layers have 4 bits: it is read whole for every token, a fifth of what that takes, and what it is off by is
# evened out by nothing behind it. In 6 bits it is as far off as llama.cpp's (Q6_K), which small models suffer from.
_SIX_BITS: Final = (6, 64)
_EIGHT_BITS: Final = (8, 128)  # groups of 32 would be a tenth larger


def has_own_forms() -> bool:
    """Whether this machine nests the scales of 4 bits and has 6: for torch's kernels these would have to be unpacked."""
    return native_kernel() is not None


def rounded_form(bits: int, group: int) -> QuantForm:
    """Return the form in which this machine packs weights to `bits`."""
    return QuantForm(bits, group, nested=bits == 4 and has_own_forms())


def choose_form(bits: int, wanted_group: int, columns: int) -> QuantForm | None:
    """Return the form with the largest group of at most `wanted_group` that divides `columns`; None where none does."""
    for group in sorted(GROUP_SIZES, reverse=True):
        if group <= wanted_group and columns % group == 0:
            return rounded_form(bits, group)
    return None


def head_size(bits: int, group: int, *, is_delicate: bool) -> tuple[int, int]:
    """Return the bits and the group of an output projection, delicate or not, behind layers in `bits` and `group`."""
    if bits == 8:
        return bits, group
    return _EIGHT_BITS if is_delicate or not has_own_forms() else _SIX_BITS
