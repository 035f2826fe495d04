"""Hanging a block's tensors into the modules of a model, and taking them out again."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from layermesh.shared.model.blocks import Block


class Binder:
    """Knows for every parameter the module and the slot it hangs in."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._places: dict[str, list[tuple[str, dict[str, Any], str, Any]]] = {}

    @contextmanager
    def bound(self, block: Block, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Let the modules compute with `tensors` (by key) while the context lasts."""
        self.bind(block, tensors)
        try:
            yield
        finally:
            for _, slots, leaf, absent in self._places[block.name]:
                slots[leaf] = absent

    def bind(self, block: Block, tensors: Mapping[str, torch.Tensor]) -> None:
        """Let the modules compute with `tensors` (by key) from now on."""
        if block.name not in self._places:
            self._places[block.name] = list(self._find(block))
        parameters = {key: nn.Parameter(tensor, requires_grad=False) for key, tensor in tensors.items()}
        for key, slots, leaf, absent in self._places[block.name]:
            slots[leaf] = parameters[key] if isinstance(absent, nn.Parameter) else tensors[key]

    def _find(self, block: Block) -> Iterable[tuple[str, dict[str, Any], str, Any]]:
        for tensor in block.tensors:
            for name in tensor.names:
                path, _, leaf = name.rpartition(".")
                module = self._model.get_submodule(path)
                slots = module._parameters if leaf in module._parameters else module._buffers
                yield tensor.key, slots, leaf, slots[leaf]
