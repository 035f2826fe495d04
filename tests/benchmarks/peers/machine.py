"""What a figure depends on: processor, cores, memory, system."""

import os
import platform
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.peers.cgroups import find_controller


def describe_machine() -> dict[str, Any]:
    """Return what is worth knowing about where the figures come from."""
    controller = find_controller()
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "instruction_sets": instruction_sets(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
        "memory_cap": f"control group v{controller.version}, page cache included" if controller else "none to be had here",
    }


def cpu_name() -> str:
    """Return the processor's name as the system tells it, with family and model where it does."""
    facts = _cpu_facts()
    if "model name" not in facts:
        return platform.processor() or platform.machine()
    return f"{facts['model name']} (family {facts.get('cpu family')}, model {facts.get('model')})"


def instruction_sets() -> list[str]:
    """Return those that matrix kernels choose between."""
    flags = _cpu_facts().get("flags", "").split()
    return [flag for flag in ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8") if flag in flags]


def _cpu_facts() -> dict[str, str]:
    """The first processor's entry in /proc/cpuinfo; empty where there is none."""
    try:
        entry = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in entry.splitlines())}
