"""What this machine has: devices, memory, and the kinds of numbers it computes with well."""

import ctypes
import sys
from typing import Final

import torch

from layermesh.shared import process_limits
from layermesh.shared.errors import ResourceError
from layermesh.shared.process_limits import FreeMemory
from layermesh.shared.processor import multiplies_bfloat16

_SHARE: Final = 0.8  # of the free memory that is taken when nobody says how much
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_LARGE_BYTES: Final = 1 << 20


def pick_device(name: str | None) -> torch.device:
    """Return the device called `name`, or the best there is.

    Raises ResourceError for one that this machine does not have.
    """
    if name is None:
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ResourceError(f"there is no device {name!r}. Say cpu, cuda or cuda:N.") from error
    if device.type not in ("cpu", "cuda"):
        raise ResourceError(f"layermesh does not compute on {name!r} yet. Say cpu, cuda or cuda:N.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ResourceError(f"there is no device {name!r} here: torch sees {torch.cuda.device_count()} CUDA devices.")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def pick_dtype(stored: torch.dtype | None, device: torch.device) -> torch.dtype:
    """Return what to compute in: the checkpoint's own dtype where `device` does it well, else float32 or float16.

    `stored` is None for quantised checkpoints, whose values only float32 holds exactly; cards compute them in half of that, as
    everybody does there. What is stored in float32 stays so: nobody loses digits unasked.
    """
    if device.type == "cuda":
        native = torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
        return {None: native, torch.bfloat16: native, torch.float16: torch.float16}.get(stored, torch.float32)
    return torch.bfloat16 if stored is torch.bfloat16 and multiplies_bfloat16() else torch.float32


def free_memory(device: torch.device) -> FreeMemory:
    """Return what a model may take on `device` when nobody says how much."""
    if device.type == "cuda":
        return FreeMemory(int(torch.cuda.mem_get_info(device)[0] * _SHARE))
    free = process_limits.free_memory()
    return FreeMemory(int(free.num_bytes * _SHARE), free.limit)


def return_memory_promptly() -> None:
    """Have the C library give large freed blocks back to the system at once, so that what is freed is really free.

    glibc otherwise raises its threshold with every large block, up to 32 MiB, and keeps them; elsewhere this does nothing.
    It holds for the whole process.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for parameter, value in ((_M_MMAP_THRESHOLD, _LARGE_BYTES), (_M_TRIM_THRESHOLD, _LARGE_BYTES), (_M_ARENA_MAX, 2)):
            libc.mallopt(parameter, value)
