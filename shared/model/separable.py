"""Which linear layers inside a decoder layer can come one at a time: those that are only ever called."""

import inspect
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from torch import nn

from layermesh.shared.quant.linear import QuantLinear


def separable_modules(layer: nn.Module) -> Iterator[str]:
    """Give the dotted names, inside `layer` and in the order of its code, of linear layers that nobody looks into.

    A family that multiplies with a layer's weight itself would find it absent.
    """
    for name, module in layer.named_modules():
        if type(module) in (nn.Linear, QuantLinear):
            path, _, leaf = name.rpartition(".")
            owner: Any = type(layer.get_submodule(path))
            if not _looks_into(owner, leaf):
                yield name


@cache
def _looks_into(owner: Any, leaf: str) -> bool:
    """Whether the code of `owner` uses the parameters of its part `leaf`; assumed where its code is not there."""
    if owner is nn.ModuleList:
        return False
    try:
        source = inspect.getsource(owner)
    except (OSError, TypeError):
        return True
    return re.search(rf"\b{re.escape(leaf)}\.(weight|bias|packed|scales)\b", source) is not None
