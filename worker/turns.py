"""Sessions of one sweep that take turns at a matrix, some rows at a time, which then come from the processor's cache.

Each has its own products, as alone. A matrix that does not fit the cache would come from memory anew for every one of them.
"""

from functools import partial
from typing import Any

import torch
from greenlet import getcurrent
from torch import nn

from layermesh.shared.model.definition import ModelDefinition
from layermesh.worker.doors import Forward

TURN_BYTES = 8 << 20  # of a matrix, well inside the last cache of most processors
ALIGNED_ROWS = 64  # kernels take rows in groups of up to as many


class Turns:
    """Hung into the linear layers and the head of `definition`, for forwards that `take_turns` with one token each.

    Rows are the same dot products wherever a matrix is cut. Whether a kernel rounds them alike is seen at the first product of
    each shape; where it does not, nobody takes turns.
    """

    def __init__(self, definition: ModelDefinition) -> None:
        self._is_exact: dict[tuple[torch.Size, torch.dtype], bool] = {}
        for module in _linear_layers(definition):
            module.forward = partial(self._pass, module, module.forward)  # type: ignore[method-assign]

    def _pass(self, module: nn.Linear, whole: Any, hidden: torch.Tensor) -> Any:
        forward = getcurrent()
        if not isinstance(forward, Forward) or not forward.takes_turns or hidden.numel() != hidden.shape[-1]:
            return whole(hidden)
        num_rows = TURN_BYTES // (module.weight[:1].nbytes or 1) // ALIGNED_ROWS * ALIGNED_ROWS
        if not 0 < num_rows < len(module.weight) or not self._check(module, whole, hidden, num_rows):
            return whole(hidden)
        return _product(module, hidden, num_rows, forward)

    def _check(self, module: nn.Linear, whole: Any, hidden: torch.Tensor, num_rows: int) -> bool:
        shape = module.weight.shape, module.weight.dtype
        if shape not in self._is_exact:
            self._is_exact[shape] = torch.equal(whole(hidden), _product(module, hidden, num_rows, None))
        return self._is_exact[shape]


def _product(module: nn.Linear, hidden: torch.Tensor, num_rows: int, forward: Forward | None) -> torch.Tensor:
    """Return what `module` makes of `hidden`, `[..., in]` to `[..., out]`; `forward` lets others have their turn in between."""
    made = hidden.new_empty(*hidden.shape[:-1], len(module.weight))
    for start in range(0, len(module.weight), num_rows):
        if forward is not None and start:
            forward.let_others()
        rows = slice(start, start + num_rows)
        bias = None if module.bias is None else module.bias[rows]
        made[..., rows] = nn.functional.linear(hidden, module.weight[rows], bias)
    return made


def _linear_layers(definition: ModelDefinition) -> list[nn.Linear]:
    inside = [module for module in definition.layers.modules() if type(module) is nn.Linear]
    head = None if definition.head is None else definition.model.get_submodule(definition.head)
    return [*inside, head] if type(head) is nn.Linear else inside
