"""How much memory this process may have: what the machine has, within every limit that holds."""

import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from layermesh.shared.cgroups import SYSTEM, memory_limits
from layermesh.shared.units import format_bytes


@dataclass(frozen=True, slots=True)
class FreeMemory:
    """Bytes that this process may still take; `limit` names what allows no more, None where that is the machine itself."""

    num_bytes: int
    limit: str | None = None


def free_memory(system: Path = SYSTEM) -> FreeMemory:
    """Return the memory that this process may still take: what is free, or less where a limit leaves less.

    Limits are those of its control group and of every group around it, and of its own address space and data (`ulimit`).
    """
    machine = FreeMemory(psutil.virtual_memory().available)
    return min([machine, *limited_memory(system)], key=lambda free: free.num_bytes)


def limited_memory(system: Path = SYSTEM) -> list[FreeMemory]:
    """Return what each limit on this process leaves, but for that of the machine."""
    groups = [
        FreeMemory(limit.free_bytes, f"{limit.name} is {format_bytes(limit.num_bytes)}") for limit in memory_limits(system)
    ]
    return [*groups, *_own_limits()]


def _own_limits() -> list[FreeMemory]:
    """Limits that are set with `ulimit -v` and `ulimit -d`, which hold on Linux alone."""
    if sys.platform != "linux":
        return []
    import resource

    taken = psutil.Process().memory_info()
    limits = {"ulimit -v": (resource.RLIMIT_AS, taken.vms), "ulimit -d": (resource.RLIMIT_DATA, taken.data)}
    found = []
    for name, (kind, used) in limits.items():
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY:
            found.append(FreeMemory(max(soft - used, 0), f"`{name}` is {format_bytes(soft)}"))
    return found
