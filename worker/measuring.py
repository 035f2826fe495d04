"""What this machine has for layers, and how fast it is: measured once, then remembered."""

import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import psutil
import torch

from layermesh.shared.apart import start_apart
from layermesh.shared.machine_profile import MachineProfile
from layermesh.shared.processor_count import num_processors
from layermesh.worker.compute_fingerprint import compute_fingerprint
from layermesh.worker.disk_rate import measure_disk
from layermesh.worker.opening import named_budget
from layermesh.worker.placement import bus_rate
from layermesh.worker.profile_cache import ProfileCache
from layermesh.worker.weight_rates import measure_flops, measure_weight_rates

STALE_SECONDS: Final = 7 * 24 * 3600.0
_CLOCK_SECONDS: Final = 24 * 3600.0  # that a clock may have been put back by
_MEMORY_STEP: Final = 1 << 28  # systems keep a little less or more for themselves after each start


def profile_machine(
    device: torch.device,
    store: Path,
    device_memory: int | None = None,
    host_memory: int | None = None,
    cache: ProfileCache | None = None,
) -> MachineProfile:
    """Return what this machine has and how fast it is, for weights in the folder `store` computed with on `device`.

    Budgets are in bytes; what is not given is what is free now. Rates come from `cache` while they are younger than a week and
    nothing about the machine has changed, else they are measured, which takes three seconds at most on two slow cores.
    """
    device_bytes, host_bytes = budgets(device, device_memory, host_memory)
    key, now = machine_key(device, store), time.time()
    known = None if cache is None else cache.find(key)
    fingerprint = compute_fingerprint(device)
    if known is None or not -_CLOCK_SECONDS <= known.age(now) <= STALE_SECONDS or known.compute_fingerprint != fingerprint:
        known = replace(measure_rates(device, store, device_bytes), measured_at=now)
        if cache is not None:
            cache.keep(key, known)
    return replace(known, device_bytes=device_bytes, host_bytes=host_bytes)


def budgets(device: torch.device, device_memory: int | None, host_memory: int | None) -> tuple[int, int]:
    """Return the bytes for layers on `device` and for those beside it, 0 where the device is the host."""
    budget = named_budget(device, device_memory, host_memory)
    return budget.device_bytes, budget.host_bytes or 0


def measure_rates(device: torch.device, store: Path, budget_bytes: int) -> MachineProfile:
    """Measure how fast this machine is, within half of `budget_bytes`; the profile has no budgets."""
    with suppress(OSError):  # a disk that cannot be written counts as a usual one
        store.mkdir(parents=True, exist_ok=True)
    weight_rates, flops = start_apart(lambda: (measure_weight_rates(device, budget_bytes), measure_flops(device))).result()
    return MachineProfile(
        device_bytes=0,
        host_bytes=0,
        bus_rate=bus_rate(device, budget_bytes) or 0.0,
        disk_rate=measure_disk(store),
        weight_rates=weight_rates,
        flops=flops,
        compute_fingerprint=compute_fingerprint(device),
    )


def machine_key(device: torch.device, store: Path) -> str:
    """Return a line that changes when rates have to be measured anew: other hardware, another disk, another torch."""
    memory = round(psutil.virtual_memory().total / _MEMORY_STEP)
    return f"{device} | {store.absolute()} | {num_processors()} cores | {memory} x 256 MiB | torch {torch.__version__}"
