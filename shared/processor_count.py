"""How many processors this process may keep busy."""

import math
import os
from pathlib import Path

from layermesh.shared.cgroups import SYSTEM, processor_limit


def num_processors(system: Path = SYSTEM) -> int:
    """Return how many processors this process may keep busy: by its affinity, and by the quota of its control groups.

    A part of a processor counts as one.
    """
    num, share = affine_processors(), processor_limit(system)
    return num if share is None else max(min(num, math.ceil(share)), 1)


def affine_processors() -> int:
    """Return how many processors this process may run on, one after the other."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
