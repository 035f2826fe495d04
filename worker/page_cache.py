"""Asking the system how much of a file already lies in its page cache."""

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from typing import Final

_CACHESTAT: Final = 451  # its number on every architecture; Linux 6.5 and newer


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Counts(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("cached", "dirty", "writeback", "evicted", "recently_evicted"))


def is_cached(descriptor: int, offset: int, num_bytes: int) -> bool:
    """Tell whether all of `num_bytes` at `offset` of an open file lie in memory; False where the system cannot say."""
    ask = _cachestat()
    if ask is None:
        return False
    page = 4096  # counted in pages, of which the first and the last may be shared with neighbours
    num_pages = (offset + num_bytes - 1) // page - offset // page + 1
    counts = _Counts()
    failed = ask(descriptor, ctypes.byref(_Range(offset, num_bytes)), ctypes.byref(counts))
    return not failed and int(counts.cached) >= num_pages


@cache
def _cachestat() -> Callable[..., int] | None:
    if sys.platform != "linux":
        return None
    system = ctypes.CDLL(None, use_errno=True).syscall
    system.restype = ctypes.c_long

    def ask(descriptor: int, extent: object, counts: object) -> int:
        return int(system(_CACHESTAT, descriptor, extent, counts, 0))

    return ask
