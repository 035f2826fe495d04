"""What this machine's processor does well."""

from functools import cache

import torch


@cache
def multiplies_bfloat16() -> bool:
    """Whether torch multiplies matrices of bfloat16 on the CPU faster than those of float32, not many times slower."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
