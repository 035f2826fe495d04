"""Keys and values in memory that is there from the start."""

from collections.abc import Collection
from typing import Any

import torch
from transformers import DynamicCache

from layermesh.shared.quant.native.structures import Room
from layermesh.shared.transformers_api import DynamicLayer


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc]  # transformers is not typed
    """A cache layer with room for `num_tokens`: a new token is written behind the others instead of copying them all.

    More tokens than that are taken too, at the price of one copy. `keys` and `values` are what is there, `[batch, heads,
    tokens, head_dim]`, cut out of their rooms when they are looked at.
    """

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens
        self._length = 0
        self._key_room: torch.Tensor | None = None
        self._value_room: torch.Tensor | None = None
        self._room: Room | None = None  # where the two were when it was asked for last
        super().__init__()

    @property
    def keys(self) -> torch.Tensor | None:
        """All keys, None before the first."""
        return None if self._key_room is None else self._key_room.narrow(-2, 0, self._length)

    @keys.setter
    def keys(self, states: torch.Tensor | None) -> None:
        self._key_room, self._length = _as_room(states)
        self._room = None

    @property
    def values(self) -> torch.Tensor | None:
        """All values, None before the first."""
        return None if self._value_room is None else self._value_room.narrow(-2, 0, self._length)

    @values.setter
    def values(self, states: torch.Tensor | None) -> None:
        self._value_room, self._length = _as_room(states)
        self._room = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append `[batch, heads, tokens, head_dim]` and return all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self._length, self._length + key_states.shape[-2]
        keys = self._key_room = self._with_room(self._key_room, key_states, start, end)
        values = self._value_room = self._with_room(self._value_room, value_states, start, end)
        self._length = end
        return keys.narrow(-2, 0, end), values.narrow(-2, 0, end)

    def room(self) -> Room | None:
        """Tell the kernel where the next token's key and value are to be written; None where there is no place for it yet."""
        keys, values = self._key_room, self._value_room
        if keys is None or values is None or self._length >= self.num_places:
            return None
        if self._room is None or (self._room.keys, self._room.values) != (keys.data_ptr(), values.data_ptr()):
            self._room = Room(keys, values)
        return self._room

    @property
    def state_dtype(self) -> torch.dtype | None:
        """The dtype of keys and values, None before the first."""
        return None if self._key_room is None else self._key_room.dtype

    @property
    def num_places(self) -> int:
        """How many tokens there is room for, those included that are there."""
        return 0 if self._key_room is None else self._key_room.shape[-2]

    def grow(self) -> None:
        """Count one more token, whose key and value have been written to their `room`."""
        self._length += 1

    def get_seq_length(self) -> int:
        """Return how many tokens there are."""
        return self._length

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens, so many as `tokens_to_remove` is below zero."""
        self._length = max(self._length - abs(tokens_to_remove), 0)

    def _with_room(self, room: torch.Tensor | None, states: torch.Tensor, start: int, end: int) -> torch.Tensor:
        """Write `states` from `start` to `end` and return the room they are in."""
        if room is None or room.shape[-2] < end:
            larger = states.new_empty(*states.shape[:-2], max(self._num_tokens, end), states.shape[-1])
            if room is not None:
                larger[:, :, :start] = room[:, :, :start]
            room, self._room = larger, None
        room[:, :, start:end] = states
        return room


def kept_layer(cache: object, index: int, dtype: torch.dtype) -> PreallocatedLayer | None:
    """Return layer `index` of `cache`, for keys and values of that kind; None where it is not a preallocated one."""
    layers = getattr(cache, "layers", ())
    kept = layers[index] if index < len(layers) else None
    return kept if type(kept) is PreallocatedLayer and kept.state_dtype is dtype else None


def _as_room(states: torch.Tensor | None) -> tuple[torch.Tensor | None, int]:
    """Take `states` as a room that is full, and how many tokens it is full of."""
    return (None, 0) if states is None or states.dim() < 2 else (states, states.shape[-2])


def preallocate(cache: object, layers: Collection[int], num_tokens: int) -> None:
    """Give those `layers` of a fresh `cache` that grow room for `num_tokens`; other kinds of layers stay as they are.

    Keys then do not lie as transformers lays them, for which some kernels round differently.
    """
    if isinstance(cache, DynamicCache):
        present: list[Any] = cache.layers
        for index, layer in enumerate(present):
            if index in layers and type(layer) is DynamicLayer and not layer.is_initialized:
                present[index] = PreallocatedLayer(num_tokens)
