"""Keys and values in memory that is there from the start."""

from collections.abc import Collection
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc]  # transformers is not typed
    """A cache layer with room for `num_tokens`: a new token is written behind the others instead of copying them all.

    More tokens than that are taken too, at the price of one copy.
    """

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self._num_tokens = num_tokens
        self._key_room: torch.Tensor | None = None
        self._value_room: torch.Tensor | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append `[batch, heads, tokens, head_dim]` and return all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        self._key_room = self._with_room(self._key_room, key_states, start, end)
        self._value_room = self._with_room(self._value_room, value_states, start, end)
        self.keys, self.values = self._key_room[:, :, :end], self._value_room[:, :, :end]
        return self.keys, self.values

    def claim(self) -> tuple[torch.Tensor, torch.Tensor, int] | None:
        """Count one more token, whose key and value the caller writes: the rooms `[batch, heads, tokens, head_dim]`, its place.

        None where there is no room for it yet.
        """
        keys, values = self._key_room, self._value_room
        if keys is None or values is None:
            return None
        past = self.get_seq_length()
        if past >= keys.shape[-2]:
            return None
        self.keys, self.values = keys.narrow(2, 0, past + 1), values.narrow(2, 0, past + 1)
        return keys, values, past

    def _with_room(self, room: torch.Tensor | None, states: torch.Tensor, start: int, end: int) -> torch.Tensor:
        """Write `states` from `start` to `end` and return the room they are in."""
        if room is None or room.shape[-2] < end:
            larger = states.new_empty(*states.shape[:-2], max(self._num_tokens, end), states.shape[-1])
            if room is not None:
                larger[:, :, :start] = room[:, :, :start]
            room = larger
        room[:, :, start:end] = states
        return room

    def reset(self) -> None:
        """Forget everything."""
        self._key_room = self._value_room = None
        super().reset()


def preallocate(cache: object, layers: Collection[int], num_tokens: int) -> None:
    """Give those `layers` of a fresh `cache` that grow room for `num_tokens`; other kinds of layers stay as they are.

    Keys then do not lie as transformers lays them, for which some kernels round differently.
    """
    if isinstance(cache, DynamicCache):
        for index, layer in enumerate(cache.layers):
            if index in layers and type(layer) is DynamicLayer and not layer.is_initialized:
                cache.layers[index] = PreallocatedLayer(num_tokens)
