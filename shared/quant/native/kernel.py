"""The kernel in C, for whoever computes with packed matrices."""

import ctypes
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch

from layermesh.shared.apart import start_apart
from layermesh.shared.library.home import home
from layermesh.shared.quant.around import NOTHING, Around
from layermesh.shared.quant.forms import QuantForm
from layermesh.shared.quant.native.building import built_library, find_compiler
from layermesh.shared.quant.native.checking import computes_correctly
from layermesh.shared.quant.native.openmp import share_openmp
from layermesh.shared.quant.native.structures import Addresses, Heads, Matrix

SWITCH: Final = "LAYERMESH_NATIVE"  # 0 leaves it out
DTYPES: Final = (torch.float32, torch.bfloat16)
CHUNK: Final = 64  # columns under one scale where there are many rows, as in many.c
PLAIN_COLUMNS: Final = 32  # matrices that are not packed have whole numbers of these
HEAD_STEP: Final = 16  # heads are whole numbers of these
WIDEST_HEAD: Final = 512


@cache
def native_kernel() -> "NativeKernel | None":
    """Return the kernel, built now if it never was; None where it cannot be had or does not compute what it should."""
    if os.environ.get(SWITCH) == "0" or sys.platform != "linux":
        return None
    compiler = find_compiler()
    if compiler is None:
        return None
    try:
        kernel = load_kernel(_library(compiler))
    except (OSError, AttributeError, subprocess.SubprocessError):
        return None
    return kernel if kernel is not None and start_apart(lambda: computes_correctly(kernel)).result() else None


def _library(compiler: Path) -> Path:
    """Return the kernel out of the user's cache or, where that cannot be written, out of a temporary folder of the user's.

    Raises what `built_library` raises.
    """
    try:
        return built_library(home() / "native", compiler)
    except OSError:
        return built_library(Path(tempfile.gettempdir()) / f"layermesh-native-{os.getuid()}", compiler)


def load_kernel(library: Path) -> "NativeKernel | None":
    """Load what was built; None where it could not use torch's threads. Raises OSError, AttributeError for another library."""
    return NativeKernel(ctypes.CDLL(str(library), mode=os.RTLD_NOW)) if share_openmp() else None


class Product:
    """A product with matrices of one shape; see `Around` for what else is done.

    For few rows inputs are rounded to 16 bits under a scale for each group, sums of a group are exact and those of groups
    float32. For many rows inputs and weights are rounded to 8 bits under a scale for each CHUNK of columns.
    """

    def __init__(self, function: Any, matrix: Matrix) -> None:
        self._function = function
        self.matrix = matrix
        self._itemsize = 2 if matrix.bfloat else 4
        self.width = matrix.width

    def __call__(
        self,
        packed: torch.Tensor,
        scales: torch.Tensor,
        inputs: torch.Tensor,
        num_rows: int,
        outputs: torch.Tensor,
        column: int = 0,
        around: Around = NOTHING,
        bias: torch.Tensor | None = None,
    ) -> None:
        """Set `outputs`, `[..., width]`, from `column` on to `inputs`, `[..., columns]`, × the transposed matrix."""
        norm, _, _, residual = around
        if self._function(
            self.matrix.address,
            packed.data_ptr(),
            scales.data_ptr(),
            inputs.data_ptr(),
            None if norm is None else norm.data_ptr(),
            None if bias is None else bias.data_ptr(),
            None if residual is None else residual.data_ptr(),
            outputs.data_ptr() + column * self._itemsize,
            num_rows,
        ):
            raise MemoryError(f"no memory for {num_rows} × {self.matrix.columns} inputs")


class NativeKernel:
    """Products on the CPU with packed matrices of every form and tile, and what a layer does between them.

    Tensors are float32 or bfloat16, all of one kind, and lie as they should: nothing is checked here. The bits of a row depend
    neither on the rows beside it nor on the number of threads.
    """

    def __init__(self, library: Any) -> None:
        self._multiply_few = _declared(library.layermesh_multiply_few, 8, 1)
        self._multiply_many = _declared(library.layermesh_multiply_many, 8, 1)
        self._multiply_plain = _declared(library.layermesh_multiply_plain, 4, 4)
        self._turn = _declared(library.layermesh_turn, 6, 1)
        self._attend = _declared(library.layermesh_attend, 5, 5)
        self._pass_token = _declared(library.layermesh_pass_token, 6, 2)
        self._chill = _declared(library.layermesh_chill, 1, 1)
        self.has_fast_many = bool(library.layermesh_has_fast_many())

    def suits_many(self, form: QuantForm, columns: int) -> bool:
        """Whether there is a fast way for many rows of inputs with matrices of this form."""
        return self.has_fast_many and form.bits == 4 and columns % CHUNK == 0

    def prepare(self, matrix: Matrix, *, many: bool) -> "Product":
        """Return the product with matrices of that shape, for few rows of inputs or, where that suits, for `many`."""
        return Product(self._multiply_many if many else self._multiply_few, matrix)

    def product(
        self,
        inputs: torch.Tensor,
        packed: torch.Tensor,
        scales: torch.Tensor,
        form: QuantForm,
        tile: int,
        *,
        many: bool = False,
    ) -> torch.Tensor:
        """Return the product alone: `[rows, columns]` to `[rows, padded rows of the matrix]`."""
        made = inputs.new_empty(len(inputs), len(packed))
        matrix = Matrix(form, tile, len(packed), inputs.shape[1], inputs.dtype, len(packed))
        self.prepare(matrix, many=many)(packed, scales, inputs, len(inputs), made)
        return made

    @staticmethod
    def suits_plain(weights: torch.Tensor) -> bool:
        """Whether `multiply_plain` can multiply with `weights`."""
        return weights.dtype in DTYPES and weights.is_contiguous() and weights.shape[1] % PLAIN_COLUMNS == 0

    def multiply_plain(self, inputs: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Return `inputs`, `[num, columns]`, × the transposed `weights`, `[rows, columns]`, with `bias`: `[num, rows]`."""
        made = inputs.new_empty(len(inputs), len(weights))
        if self._multiply_plain(
            weights.data_ptr(),
            inputs.data_ptr(),
            None if bias is None else bias.data_ptr(),
            made.data_ptr(),
            *weights.shape,
            weights.dtype is torch.bfloat16,
            len(inputs),
        ):
            raise MemoryError(f"no memory for {len(inputs)} × {weights.shape[1]} inputs")
        return made

    def chill(self, weights: torch.Tensor) -> bool:
        """Leave nothing of `weights` in the processor's caches; False where it cannot be told to."""
        return bool(self._chill(weights.data_ptr(), weights.nbytes))

    def turn(
        self,
        heads: Heads,
        states: torch.Tensor,
        phases: tuple[torch.Tensor, torch.Tensor],
        query_norm: torch.Tensor | None,
        key_norm: torch.Tensor | None,
    ) -> None:
        """Turn the queries and keys in `states`, `[..., width]`, in place, by a cosine and a sine, each `[..., turned]`.

        Before that each head is normalised where there are weights for it.
        """
        self._turn(
            heads.address,
            states.data_ptr(),
            phases[0].data_ptr(),
            phases[1].data_ptr(),
            query_norm.data_ptr() if query_norm is not None else None,
            key_norm.data_ptr() if key_norm is not None else None,
            states.numel() // heads.width,
        )

    def attend(
        self, heads: Heads, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, results: torch.Tensor
    ) -> None:
        """Set `results` to what the `queries` of one token, heads side by side, find among all `keys` and `values`.

        These are `[1, heads of keys, tokens, size]`, their last dimension dense.
        """
        key_steps, value_steps, num = keys.stride(), values.stride(), keys.shape[2]
        if self._attend(
            heads.address,
            queries.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            results.data_ptr(),
            key_steps[1],
            key_steps[2],
            value_steps[1],
            value_steps[2],
            num,
        ):
            raise MemoryError(f"no memory for {num} scores of each query")

    def pass_token(
        self,
        layers: Addresses,
        rooms: Addresses,
        inputs: torch.Tensor,
        phases: tuple[torch.Tensor, torch.Tensor],
        past: int,
        results: torch.Tensor,
    ) -> None:
        """Set `results`, `[..., hidden]`, to what `layers`, one behind the other, make of one token's `inputs`, of that shape.

        The token's keys and values come into its `rooms` in each layer, behind those of the `past` tokens that are there.
        """
        if self._pass_token(
            layers,
            rooms,
            inputs.data_ptr(),
            phases[0].data_ptr(),
            phases[1].data_ptr(),
            results.data_ptr(),
            len(layers),
            past,
        ):
            raise MemoryError(f"no memory for a token behind {past} others")


def _declared(function: Any, num_pointers: int, num_integers: int) -> Any:
    function.argtypes = (*[ctypes.c_void_p] * num_pointers, *[ctypes.c_int64] * num_integers)
    function.restype = ctypes.c_int
    return function
