"""Bounding what the libraries below keep for themselves."""

import os
from typing import Final

KEPT_KERNELS: Final = 16
CUBLAS_WORKSPACE: Final = ":4096:2:16:8"  # 8 MiB on every card; on some torch would give it 32 MiB


def bound_kernel_caches() -> None:
    """Have oneDNN, and torch's bridge to it, each keep a few compiled kernels instead of a thousand, and cuBLAS work in 8 MiB.

    They keep one for every shape they meet, which for a mixture of experts soon is a hundred megabytes beside the budget.
    All look at their environment once, so this must come before torch is imported; what the user has set there stands.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(KEPT_KERNELS))
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)
