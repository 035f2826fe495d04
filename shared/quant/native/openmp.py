"""The threads of torch, for others to use: two pools of threads that wait in a loop would take the cores from each other."""

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import torch

_MAPS: Final = Path("/proc/self/maps")
_RUNTIMES: Final = ("libgomp", "libomp", "libiomp5")  # all have the functions that gcc's code calls


def share_openmp() -> bool:
    """Let libraries that are loaded from now on find the OpenMP that torch uses; False where it is not clear which."""
    runtime = torchs_runtime(_loaded(), Path(torch.__file__).parent)
    if runtime is None:
        return False
    ctypes.CDLL(runtime, mode=ctypes.RTLD_GLOBAL | os.RTLD_NOLOAD)
    return True


def torchs_runtime(loaded: Iterable[str], torch_folder: Path) -> str | None:
    """Return the OpenMP among the `loaded` libraries that comes with torch, or else the only one there is."""
    runtimes = [path for path in dict.fromkeys(loaded) if Path(path).name.startswith(_RUNTIMES)]
    bundled = [path for path in runtimes if Path(path).is_relative_to(torch_folder) or _beside(path, torch_folder)]
    for found in (bundled, runtimes):
        if len(found) == 1:
            return found[0]
    return None


def _beside(path: str, torch_folder: Path) -> bool:
    return Path(path).is_relative_to(torch_folder.with_name("torch.libs"))


def _loaded() -> list[str]:
    lines = _MAPS.read_text().splitlines()
    return [fields[5] for line in lines if len(fields := line.split(maxsplit=5)) == 6]
