"""Bounding what the libraries below keep for themselves."""

import os
from typing import Final

KEPT_KERNELS: Final = 16


def bound_kernel_caches() -> None:
    """Have oneDNN, and torch's bridge to it, each keep a few compiled kernels instead of a thousand.

    They keep one for every shape they meet, which for a mixture of experts soon is a hundred megabytes beside the budget.
    They look at their environment once, so this must come before torch is imported; what the user has set there stands.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(KEPT_KERNELS))
