"""Layers whose weights stay on the host, computed with there in the middle of a forward on another device."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import nn
from transformers import Cache

from layermesh.shared.host_compute import HostRates, choose_host_computed
from layermesh.shared.model.blocks import Block
from layermesh.shared.model.definition import ModelDefinition
from layermesh.shared.residency import Residency

HOST: Final = torch.device("cpu")
NUM_TRIALS: Final = 3  # the first runs of a layer also wake threads and compile kernels


class HostLayers:
    """Takes a layer's arguments to the host, runs it there, and brings back what it returns.

    This can be done with the layers that have nothing on the device beside their block, in models that keep nothing but keys
    and values. `bus_rate` is how many bytes per second reach the device; None where it has no memory of its own.
    """

    def __init__(
        self, definition: ModelDefinition, blocks: Sequence[Block], device: torch.device, bus_rate: float | None
    ) -> None:
        self.bus_rate = bus_rate
        self._device = device
        self._num_layers = definition.num_layers
        self._able = frozenset(block.name for block in blocks if definition.takes_chunks and _is_complete(block, definition))
        self._rates: list[float] = []

    @property
    def rate(self) -> float | None:
        """Bytes of weights that a token goes through in a second here, the best of the first runs; None before those."""
        return max(self._rates) if len(self._rates) == NUM_TRIALS else None

    def choose(self, residency: Residency, num_tokens: int) -> frozenset[str]:
        """Return the blocks to compute with here in a sweep of `num_tokens`."""
        if self.bus_rate is None or not residency.host_working_bytes:
            return frozenset()
        return choose_host_computed(residency, self._able, HostRates(self.bus_rate, self.rate), num_tokens)

    def run(
        self, block: Block, forward: Callable[..., Any], cache: Cache | None, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        """Return what `forward` of the layer of `block` returns, on the device."""
        self.bring_cache(cache, block, HOST)
        arguments, named = moved(tuple(args), HOST), moved(kwargs, HOST)
        began = time.perf_counter()
        returned = forward(*arguments, **named)
        if len(self._rates) < NUM_TRIALS:  # fixed from then on, so that layers and their caches do not move to and fro
            self._rates.append(block.loaded_bytes / max(time.perf_counter() - began, 1e-9))
        return moved(returned, self._device)

    def bring_cache(self, cache: Cache | None, block: Block, device: torch.device | None = None) -> None:
        """Move what a session's cache has of the layer of `block` to `device`, by default back to where layers usually run."""
        if self.bus_rate is None:  # there is no other place
            return
        own: Any = getattr(cache, "self_attention_cache", cache)
        if own is None or block.layer is None:
            return
        per_layer = max(len(own.layers) // self._num_layers, 1)
        for layer in own.layers[block.layer * per_layer : (block.layer + 1) * per_layer]:
            move_attributes(layer, device or self._device)


def moved(value: Any, device: torch.device) -> Any:
    """Return `value` with the tensors in it, in tuples, lists and dicts too, on `device`; caches stay where they are."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if type(value) in (tuple, list):
        return type(value)(moved(item, device) for item in value)
    if type(value) is dict:
        return {name: moved(item, device) for name, item in value.items()}
    return value


def move_attributes(layer: Any, device: torch.device) -> None:
    """Move the tensors that one layer of a cache holds to `device`, and have it believe that it was always there."""
    if getattr(layer, "device", None) is not None and layer.device == device:
        return
    for name, value in vars(layer).items():
        if isinstance(value, torch.Tensor):
            setattr(layer, name, value.to(device))
        elif name.endswith("device") and value is not None:
            setattr(layer, name, device)


def _is_complete(block: Block, definition: ModelDefinition) -> bool:
    """Whether all that the layer of `block` has comes with the block."""
    if block.layer is None:
        return False
    layer: nn.Module = definition.layers[block.layer]
    prefix = f"{definition.layers_path}.{block.layer}."
    own = {name for tensor in block.tensors for name in tensor.names}
    has = [*layer.named_parameters(remove_duplicate=False), *layer.named_buffers(remove_duplicate=False)]
    return all(prefix + name in own for name, _ in has)
