"""What this machine's processor does well."""

from functools import cache
from pathlib import Path
from typing import Final

import torch

_CACHES: Final = Path("/sys/devices/system/cpu/cpu0/cache")


@cache
def multiplies_bfloat16() -> bool:
    """Whether torch multiplies matrices of bfloat16 on the CPU faster than those of float32, not many times slower."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@cache
def last_cache_bytes() -> int:
    """Return how much the largest cache of this processor holds; 0 where the system does not say."""
    sizes = [_in_bytes(path) for path in _CACHES.glob("index*/size")]
    return max(sizes, default=0)


def _in_bytes(path: Path) -> int:
    """Return a size such as 32K or 480M that Linux gives of a cache."""
    try:
        text = path.read_text().strip()
        return int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[text[-1]]
    except (OSError, ValueError, LookupError):
        return 0
