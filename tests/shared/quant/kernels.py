"""What tests of the kernel in C share."""

import sys

import pytest
import torch

from layermesh.shared.quant.native.building import find_compiler
from layermesh.shared.quant.native.structures import Heads

COMPILER = find_compiler()
needs_compiler = pytest.mark.skipif(
    COMPILER is None or sys.platform != "linux", reason="there is no C compiler, or no way to torch's threads"
)


def relative_error(made: torch.Tensor, expected: torch.Tensor) -> float:
    return float((made.double() - expected).norm() / expected.norm())


def some_heads(dtype: torch.dtype, size: int = 64, turned: int = 64, queries: int = 6) -> Heads:
    return Heads(queries, 2, size, turned, dtype, 1e-6, size**-0.5)
