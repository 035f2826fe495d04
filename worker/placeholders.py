"""Standing in for the layers of other stages in a session's cache.

Models derive lengths, masks and rotary phases from their cache as a whole, often from its first layer, wherever that runs.
A key and a value of one element per token keep those right at next to no cost.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import torch
from transformers import Cache

from layermesh.shared.model.caches import PreallocatedLayer
from layermesh.shared.model.definition import ModelDefinition
from layermesh.shared.spans import LayerSpan
from layermesh.shared.transformers_api import CacheLayerMixin, DynamicLayer, LinearAttentionCacheLayerMixin

_PLAIN: Final = (DynamicLayer, PreallocatedLayer)


def fill_placeholders(cache: Cache, span: LayerSpan, definition: ModelDefinition, position: int) -> None:
    """Bring every layer of `cache` outside `span` to the length `position`, but for those that look at something else."""
    num_layers = definition.num_layers
    if len(span) == num_layers:
        return
    own: Any = getattr(cache, "self_attention_cache", cache)
    if own.layer_class_to_replicate is not None:  # a cache that grows a layer when it is first used
        own.layers += [own.layer_class_to_replicate() for _ in range(num_layers - len(own.layers))]
    per_layer, elsewhere = max(len(own.layers) // num_layers, 1), definition.cross_layers
    outside = [i for i in range(len(own.layers)) if i // per_layer not in span and i // per_layer not in elsewhere]
    for layer in _shared(own.layers, outside):
        _fill(layer, position)


def _shared(layers: list[Any], places: Sequence[int]) -> Iterable[Any]:
    """Let one layer stand at all `places` where a plain one does, as it is the same there, and return those that are left."""
    plain = [place for place in places if type(layers[place]) in _PLAIN]
    for place in plain:
        layers[place] = layers[plain[0]]
    return {id(layers[place]): layers[place] for place in places}.values()


def _fill(layer: Any, position: int) -> None:
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        layer.has_previous_state = dict.fromkeys(layer.has_previous_state, True)
    if isinstance(layer, CacheLayerMixin) and layer.get_seq_length() < position:
        blank = torch.zeros(1, 1, position - layer.get_seq_length(), 1)  # [batch, heads, tokens, head_dim]
        layer.update(blank, blank)
