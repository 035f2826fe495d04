import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from layermesh.shared.model.caches import PreallocatedLayer, preallocate


@pytest.mark.parametrize("room", [1, 7, 100])
def test_a_preallocated_layer_holds_what_a_growing_one_does(room):
    ours, theirs = PreallocatedLayer(room), DynamicLayer()
    for num_tokens in (5, 1, 1, 3, 1):
        keys, values = torch.randn(1, 2, num_tokens, 4), torch.randn(1, 2, num_tokens, 6)
        for mine, other in zip(ours.update(keys, values), theirs.update(keys, values), strict=True):
            assert torch.equal(mine, other)
        assert ours.get_seq_length() == theirs.get_seq_length()
        assert ours.get_mask_sizes(1) == theirs.get_mask_sizes(1)


def test_within_its_room_nothing_is_allocated():
    layer = PreallocatedLayer(50)
    addresses = {layer.update(torch.randn(1, 2, 1, 4), torch.randn(1, 2, 1, 4))[0].data_ptr() for _ in range(50)}
    assert len(addresses) == 1


def test_only_layers_that_grow_and_were_named_are_given_room():
    cache = DynamicCache()
    cache.layers = [DynamicLayer(), object(), DynamicLayer(), DynamicLayer()]
    cache.layers[2].update(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    preallocate(cache, {0, 1, 2}, 9)
    assert [type(layer) for layer in cache.layers] == [PreallocatedLayer, object, DynamicLayer, DynamicLayer]
    preallocate(None, {0}, 9)


def test_a_claimed_place_is_where_the_next_token_goes():
    ours, theirs = PreallocatedLayer(4), DynamicLayer()
    assert ours.claim() is None  # nothing is known of its shape yet
    keys, values = torch.randn(2, 1, 2, 4, 8).unbind()
    for layer in (ours, theirs):
        layer.update(keys[:, :, :3], values[:, :, :3])
    room_for_keys, room_for_values, past = ours.claim()
    assert past == 3
    room_for_keys[:, :, past], room_for_values[:, :, past] = keys[:, :, 3], values[:, :, 3]
    theirs.update(keys[:, :, 3:], values[:, :, 3:])
    assert torch.equal(ours.keys, theirs.keys)
    assert torch.equal(ours.values, theirs.values)
    assert ours.claim() is None  # it is full, and has not counted a token that has no place
    assert ours.get_seq_length() == 4
