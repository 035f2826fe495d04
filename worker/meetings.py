"""Sessions of one sweep that meet at a matrix, so that it is read once for all of them.

One of them multiplies for those that are there. Our kernel gives each the bits that it gets alone, so a token that is alone
goes through the same kernel. So do several tokens of one session where torch would be slow.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from greenlet import getcurrent
from torch import nn

from layermesh.shared.model.definition import ModelDefinition
from layermesh.shared.model.lean_layer import LeanLayer
from layermesh.shared.quant.native.kernel import native_kernel
from layermesh.shared.quant.plain import multiply, multiply_several, suits, suits_several
from layermesh.worker.doors import Forward


@dataclass(slots=True)
class _Meeting:
    """The inputs of those who wait at one matrix, and what becomes of them: `[num, columns]` to `[num, rows]`."""

    inputs: list[torch.Tensor] = field(default_factory=list)
    made: torch.Tensor | None = None


class Meetings:
    """Hung into the plain linear layers of lean layers and into the head behind them.

    Layers of other kinds stay what transformers makes of them, to the bit.
    """

    def __init__(self, definition: ModelDefinition) -> None:
        self._meetings: dict[nn.Linear, _Meeting] = {}
        modules = _linear_layers(definition)
        if modules:
            native_kernel()  # building it takes a second or two, which the first token should not
        for module in modules:
            module.forward = partial(self._pass, module, module.forward)  # type: ignore[method-assign]

    def _pass(self, module: nn.Linear, whole: Any, hidden: torch.Tensor) -> Any:
        forward = getcurrent()
        if not suits(hidden, module.weight, module.bias):
            stands_in = suits_several(hidden, module.weight, module.bias)
            return multiply_several(hidden, module.weight, module.bias) if stands_in else whole(hidden)
        if not isinstance(forward, Forward) or not forward.takes_turns:
            return multiply(hidden, module.weight, module.bias)
        return self._meet(module, hidden, forward)

    def _meet(self, module: nn.Linear, hidden: torch.Tensor, forward: Forward) -> torch.Tensor:
        meeting = self._meetings.setdefault(module, _Meeting())
        number = len(meeting.inputs)
        meeting.inputs.append(hidden.reshape(1, -1))
        try:
            forward.let_others()
        except BaseException:  # the sweep ends: nobody will come back
            self._meetings.pop(module, None)
            raise
        if meeting.made is None:  # the first to come back, or the next where that one failed
            if self._meetings.get(module) is meeting:
                del self._meetings[module]  # whoever comes from now on meets anew
            meeting.made = multiply(torch.cat(meeting.inputs), module.weight, module.bias)
        return meeting.made[number].view(*hidden.shape[:-1], -1)


def _linear_layers(definition: ModelDefinition) -> list[nn.Linear]:
    lean = [layer for layer in definition.layers if isinstance(layer, LeanLayer)]
    inside = [module for layer in lean for module in layer.modules() if type(module) is nn.Linear]
    head = None if definition.head is None or not lean else definition.model.get_submodule(definition.head)
    return [*inside, head] if type(head) is nn.Linear else inside
