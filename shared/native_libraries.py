"""Settings of the libraries below that must be made before they are loaded."""

import os
import sys
from typing import Final

from layermesh.shared.processor_count import affine_processors, num_processors

_KEPT_KERNELS: Final = 16
_CUBLAS_WORKSPACE: Final = ":4096:2:16:8"  # 8 MiB on every card; on some torch would give it 32 MiB
_SPINS: Final = 10_000  # tens of microseconds: from one operation to the next, and no longer


def settle_native_libraries() -> None:
    """Bound what oneDNN and cuBLAS keep, how many threads OpenMP has, and for how long they wait in a loop.

    oneDNN, and torch's bridge to it, keep a compiled kernel for every shape they meet, a thousand of them, which for a mixture
    of experts is a hundred megabytes beside the budget. OpenMP's threads spin for milliseconds after each operation, on cores
    that readers could use. All look at their environment once, so this must come before torch is imported; what the user
    has set there stands.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(_KEPT_KERNELS))
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what becomes of connections is told in our words, on our lines
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", _CUBLAS_WORKSPACE)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(_SPINS))
    if "OMP_NUM_THREADS" not in os.environ and (num := num_processors()) < affine_processors():
        _bound_threads(num)


def _bound_threads(num: int) -> None:
    """Have OpenMP use `num` threads: it sees which processors a process may run on, and no quota of its control groups."""
    os.environ["OMP_NUM_THREADS"] = str(num)
    torch = sys.modules.get("torch")
    if torch is not None:  # it has looked at the environment already
        torch.set_num_threads(min(torch.get_num_threads(), num))
