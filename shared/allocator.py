"""The C library's memory while much comes and goes: kept for the next, not given back to the system each time."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_PROMPT_BYTES: Final = 1 << 20  # as `return_memory_promptly` has it
_MAPPED_BYTES: Final = 8 << 20
_KEPT_BYTES: Final = 32 << 20


@contextmanager
def keeping_memory() -> Iterator[None]:
    """Keep up to 32 MiB of what is freed meanwhile; afterwards all of it goes back, as it did before.

    Messages of a mebibyte are copied several times on their way. When each copy is memory that the system has to give out and
    to take back, that takes most of the time. It holds for the whole process: whoever leaves first ends it for all, which
    costs the others only time. Where the C library is another than glibc this does nothing.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    libc.mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
    libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    try:
        yield
    finally:
        libc.mallopt(_M_MMAP_THRESHOLD, _PROMPT_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _PROMPT_BYTES)
        libc.malloc_trim(0)
