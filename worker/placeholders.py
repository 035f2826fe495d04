"""Standing in for the layers of other stages in a session's cache.

Models derive lengths, masks and rotary phases from their cache as a whole, often from its first layer, wherever that runs.
A key and a value of one element per token keep those right at next to no cost.
"""

from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin, DummyLayer, LinearAttentionCacheLayerMixin

from layermesh.shared.spans import LayerSpan


def fill_placeholders(cache: Any, span: LayerSpan, num_layers: int, position: int) -> None:
    """Bring every layer of `cache` outside `span` to the length `position`."""
    cache = getattr(cache, "self_attention_cache", cache)
    layers = getattr(cache, "layers", None)
    if layers is None:
        return
    per_layer = max(len(layers) // num_layers, 1)
    for index, layer in enumerate(layers):
        if index // per_layer not in span:
            _fill(layer, position)


def _fill(layer: Any, position: int) -> None:
    if isinstance(layer, DummyLayer):
        return
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        layer.has_previous_state = dict.fromkeys(layer.has_previous_state, True)
    if isinstance(layer, CacheLayerMixin) and layer.get_seq_length() < position:
        blank = torch.zeros(1, 1, position - layer.get_seq_length(), 1)  # [batch, heads, tokens, head_dim]
        layer.update(blank, blank)
