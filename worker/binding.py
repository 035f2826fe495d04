"""Hanging a block's tensors into the modules of a model, and taking them out again."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from layermesh.shared.model.blocks import Block
from layermesh.worker.buffers import LoadedTensors


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one tensor of a block hangs: `leaf` in the `slots` of a module, which hold `absent` while it is not there."""

    key: str
    slots: dict[str, Any]
    leaf: str
    absent: Any

    @property
    def is_parameter(self) -> bool:
        return isinstance(self.absent, nn.Parameter)


class Binder:
    """Knows for every parameter the module and the slot it hangs in."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._places: dict[str, list[_Place]] = {}
        self._bound: dict[str, LoadedTensors] = {}
        self.num_changes = 0  # how often something was hung or taken out

    @contextmanager
    def bound(self, block: Block, tensors: LoadedTensors, *, lasting: bool = False) -> Iterator[None]:
        """Let the modules compute with `tensors` (by key) while the context lasts, or until `unbind` if `lasting`."""
        self.bind(block, tensors)
        try:
            yield
        finally:
            if not lasting:
                self.unbind(block)

    def bind(self, block: Block, tensors: LoadedTensors) -> None:
        """Let the modules compute with `tensors` (by key) from now on; nothing to do if they do so already."""
        if self._bound.get(block.name) is tensors:
            return
        if block.name not in self._places:
            self._places[block.name] = list(self._find(block))
        for place in self._places[block.name]:
            place.slots[place.leaf] = tensors.parameters[place.key] if place.is_parameter else tensors[place.key]
        self._bound[block.name] = tensors
        self.num_changes += 1

    def holds(self, block: Block) -> bool:
        """Whether the modules compute with tensors of `block` now."""
        return block.name in self._bound

    def unbind(self, block: Block) -> None:
        """Take the tensors of `block` out again, if they are there."""
        if self._bound.pop(block.name, None) is not None:
            self.num_changes += 1
            for place in self._places[block.name]:
                place.slots[place.leaf] = place.absent

    def _find(self, block: Block) -> Iterable[_Place]:
        for tensor in block.tensors:
            for name in tensor.names:
                path, _, leaf = name.rpartition(".")
                module = self._model.get_submodule(path)
                slots = module._parameters if leaf in module._parameters else module._buffers
                yield _Place(tensor.key, slots, leaf, slots[leaf])
