"""What the kernel is told of matrices, heads, layers and caches: as its headers have it, field by field."""

import ctypes
from collections.abc import Sequence
from typing import Final

import torch

from layermesh.shared.quant.forms import QuantForm

MOST_FACTORS: Final = 3  # matrices that make queries, keys and values

Addresses = ctypes.Array[ctypes.c_void_p]


class Matrix(ctypes.Structure):
    """A packed matrix and what is made of its products, apart from all that has an address: as matrix.h says."""

    _fields_ = (
        *(
            (name, ctypes.c_int64)
            for name in ("rows", "columns", "group", "tile", "bits", "nested", "bfloat", "used", "gated", "width")
        ),
        ("epsilon", ctypes.c_double),
    )

    def __init__(
        self,
        form: QuantForm,
        tile: int,
        rows: int,
        columns: int,
        dtype: torch.dtype,
        used: int,
        *,
        gated: bool = False,
        width: int | None = None,
        epsilon: float = 0.0,
    ) -> None:
        width = used if width is None else width
        bfloat = dtype is torch.bfloat16
        super().__init__(rows, columns, form.group, tile, form.bits, form.nested, bfloat, used, gated, width, epsilon)
        self.address = ctypes.addressof(self)


class Heads(ctypes.Structure):
    """How the queries, keys and values of a token lie side by side, and how they are turned and compared: as in heads.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("queries", "keys", "size", "turned", "width", "bfloat")),
        ("epsilon", ctypes.c_double),
        ("scale", ctypes.c_double),
    )

    def __init__(
        self, queries: int, keys: int, size: int, turned: int, dtype: torch.dtype, epsilon: float, scale: float
    ) -> None:
        width = (queries + 2 * keys) * size
        super().__init__(queries, keys, size, turned, width, dtype is torch.bfloat16, epsilon, scale)
        self.dtype = dtype
        self.address = ctypes.addressof(self)


class Factor(ctypes.Structure):
    """One matrix of a layer with its bias, by their addresses: as matrix.h says."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("matrix", "packed", "scales", "bias", "residual", "outputs"))


class Layer(ctypes.Structure):
    """All that a layer is made of, by its addresses: as in layer.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("heads", "norm", "second_norm", "query_norm", "key_norm")),
        ("num_first", ctypes.c_int64),
        ("first", Factor * MOST_FACTORS),
        *((name, Factor) for name in ("output", "gate_up", "down")),
    )


class Room(ctypes.Structure):
    """Where a layer's keys and values of one sequence lie, `[1, heads of keys, tokens, size]` each: as in layer.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
        *((name, ctypes.c_int64) for name in ("key_head_step", "key_step", "value_head_step", "value_step")),
    )

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        steps = *keys.stride()[1:3], *values.stride()[1:3]
        super().__init__(keys.data_ptr(), values.data_ptr(), *steps)


def addresses(structures: "Sequence[Layer] | Sequence[Room]") -> Addresses:
    """Return where `structures` lie, for the kernel; they must outlive what is returned."""
    return (ctypes.c_void_p * len(structures))(*map(ctypes.addressof, structures))
