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


def test_a_token_that_somebody_else_writes_counts_once_it_is_there():
    ours, theirs = PreallocatedLayer(4), DynamicLayer()
    assert ours.room() is None  # nothing is known of its shape yet
    keys, values = torch.randn(2, 1, 2, 4, 8).unbind()
    for layer in (ours, theirs):
        layer.update(keys[:, :, :3], values[:, :, :3])
    room = ours.room()
    assert (room.keys, room.values) == (ours.keys.data_ptr(), ours.values.data_ptr())
    assert (room.key_head_step, room.key_step) == ours.keys.stride()[1:3]
    assert (room.value_head_step, room.value_step) == ours.values.stride()[1:3]
    ours._key_room[:, :, 3], ours._value_room[:, :, 3] = keys[:, :, 3], values[:, :, 3]
    assert ours.get_seq_length() == 3
    ours.grow()
    theirs.update(keys[:, :, 3:], values[:, :, 3:])
    assert torch.equal(ours.keys, theirs.keys)
    assert torch.equal(ours.values, theirs.values)
    assert ours.room() is None  # it is full
    assert ours.get_seq_length() == 4


def test_the_room_that_is_told_of_is_the_one_there_is():
    layer = PreallocatedLayer(2)
    layer.update(torch.ones(1, 2, 1, 8), torch.ones(1, 2, 1, 8))
    assert layer.room() is layer.room()
    layer.update(torch.ones(1, 2, 2, 8), torch.ones(1, 2, 2, 8))
    layer.crop(-1)
    assert layer.room().keys == layer.keys.data_ptr()


def test_a_cropped_or_reset_layer_goes_on_like_a_growing_one():
    ours, theirs = PreallocatedLayer(9), DynamicLayer()
    states = torch.randn(1, 2, 5, 4)
    for layer in (ours, theirs):
        layer.update(states, -states)
        layer.crop(-2)
        layer.update(states[:, :, :1], states[:, :, :1])
    assert torch.equal(ours.keys, theirs.keys)
    assert torch.equal(ours.values, theirs.values)
    for layer in (ours, theirs):
        layer.reset()
        assert layer.get_seq_length() == 0
        layer.update(states, -states)
    assert torch.equal(ours.values, theirs.values)
