"""Shapes of what is computed on the meta device, without the compiler that torch would load for them.

Ranges there, and joining tensors, go through torch's Python references, which import sympy and torch._dynamo: 70 MB, and a
second or two.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class LightMeta(TorchFunctionMode):
    """Makes ranges real, and so all that is computed from them, and works out the shapes of joined tensors by itself."""

    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.arange and kwargs.get("device") is None:
            return torch.arange(*args, **{**kwargs, "device": "cpu"})
        if function is torch.stack and _are_meta(args[:1]):
            return _stacked(*args, **kwargs)
        if function is torch.cat and _are_meta(args[:1]):
            return _joined(*args, **kwargs)
        return function(*args, **kwargs)


def _are_meta(args: Any) -> bool:
    """Whether the only one of `args` is a list of tensors of one dtype, all of them on the meta device."""
    tensors = args[0] if args and isinstance(args[0], (list, tuple)) else ()
    return len(tensors) > 0 and all(tensor.is_meta and tensor.dtype is tensors[0].dtype for tensor in tensors)


def _stacked(tensors: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor:
    return _joined([tensor.unsqueeze(dim) for tensor in tensors], dim)


def _joined(tensors: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor:
    shape = list(tensors[0].shape)
    dim %= len(shape)
    others = [[*tensor.shape[:dim], *tensor.shape[dim:][1:]] for tensor in tensors]
    if any(len(tensor.shape) != len(shape) for tensor in tensors) or any(other != others[0] for other in others):
        raise ValueError(f"tensors of the shapes {[tuple(tensor.shape) for tensor in tensors[:4]]} … cannot be joined")
    shape[dim] = sum(tensor.shape[dim] for tensor in tensors)
    return tensors[0].new_empty(shape)
