"""Running out of memory, which every library says in its own way."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

from layermesh.shared.errors import ResourceError

OUT_OF_MEMORY: Final = (
    "this machine ran out of memory while the model computed. Allow it less (--host-memory, --device-memory), shorten the "
    "prompt, or close other programs."
)
_SAYINGS: Final = (
    "DefaultCPUAllocator",  # torch has no exception of its own for the CPU
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


@contextmanager
def minding_memory() -> Iterator[None]:
    """Make a ResourceError of whatever says that there is no memory left."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise ResourceError(OUT_OF_MEMORY) from error
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that there is no memory left."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(saying in str(error) for saying in _SAYINGS)
