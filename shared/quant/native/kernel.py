"""The kernel in C, for whoever multiplies with packed matrices."""

import ctypes
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch

from layermesh.shared.library.home import home
from layermesh.shared.quant.forms import QuantForm
from layermesh.shared.quant.native.building import built_library, find_compiler
from layermesh.shared.quant.native.checking import computes_correctly
from layermesh.shared.quant.native.openmp import share_openmp

SWITCH: Final = "LAYERMESH_NATIVE"  # 0 leaves it out
_DTYPES: Final = (torch.float32, torch.bfloat16)


@cache
def native_kernel() -> "NativeKernel | None":
    """Return the kernel, built now if it never was; None where it cannot be had or does not compute what it should."""
    if os.environ.get(SWITCH) == "0" or sys.platform != "linux":
        return None
    compiler = find_compiler()
    if compiler is None:
        return None
    try:
        kernel = load_kernel(built_library(home() / "native", compiler))
    except (OSError, AttributeError, subprocess.SubprocessError):
        return None
    return kernel if kernel is not None and computes_correctly(kernel.multiply) else None


def load_kernel(library: Path) -> "NativeKernel | None":
    """Load what was built; None where it could not use torch's threads. Raises OSError, AttributeError for another library."""
    return NativeKernel(ctypes.CDLL(str(library), mode=os.RTLD_NOW)) if share_openmp() else None


class NativeKernel:
    """Products on the CPU with packed matrices of every form and tile.

    Inputs are rounded to 16 bits under a scale for each group, sums of a group are exact and those of groups float32. The bits
    of a row depend neither on the rows beside it nor on the number of threads.
    """

    def __init__(self, library: Any) -> None:
        self._multiply = library.layermesh_multiply
        self._multiply.argtypes = (*[ctypes.c_void_p] * 5, ctypes.c_int64)
        self._multiply.restype = ctypes.c_int
        self._matrices: dict[tuple[object, ...], _Matrix] = {}

    def multiply(
        self, inputs: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor, form: QuantForm, tile: int
    ) -> torch.Tensor:
        """Return `inputs` × the transposed matrix: `[..., columns]` to `[..., padded rows]`, in the dtype of `inputs`."""
        dtype = inputs.dtype
        if dtype not in _DTYPES:
            return self.multiply(inputs.float(), packed, scales, form, tile).to(dtype)
        inputs = inputs.contiguous()
        *outer, columns = inputs.shape
        rows = packed.shape[0]
        key = rows, columns, form.group, tile, form.bits, dtype
        matrix = self._matrices.get(key)
        if matrix is None:
            matrix = self._matrices[key] = _Matrix(rows, columns, form.group, tile, form.bits, dtype is torch.bfloat16)
        made = inputs.new_empty(*outer, rows)
        num_rows = inputs.numel() // columns
        if self._multiply(matrix.address, packed.data_ptr(), scales.data_ptr(), inputs.data_ptr(), made.data_ptr(), num_rows):
            raise MemoryError(f"no memory for {num_rows} × {columns} inputs")
        return made


class _Matrix(ctypes.Structure):
    """The numbers that int4.c calls a Matrix."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("rows", "columns", "group", "tile", "bits", "bfloat"))

    def __init__(self, *values: Any) -> None:
        super().__init__(*values)
        self.address = ctypes.addressof(self)
