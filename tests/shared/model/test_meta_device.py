import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layermesh.shared.model.meta_device import LightMeta

shapes = st.lists(st.integers(0, 5), min_size=1, max_size=4)


@given(shapes, st.integers(1, 4), st.data())
def test_shapes_are_those_of_real_tensors(shape, count, data):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    place = data.draw(st.integers(-len(shape) - 1, len(shape)))
    real = [torch.empty(shape, dtype=torch.int8) for _ in range(count)]
    with LightMeta():
        joined = torch.cat([tensor.to("meta") for tensor in real], dim=axis)
        stacked = torch.stack([tensor.to("meta") for tensor in real], place)
    assert joined.is_meta
    assert stacked.is_meta
    assert joined.dtype is stacked.dtype is torch.int8
    assert joined.shape == torch.cat(real, dim=axis).shape
    assert stacked.shape == torch.stack(real, place).shape


def test_what_does_not_fit_together_is_refused():
    with LightMeta(), pytest.raises(ValueError, match="cannot be joined"):
        torch.cat([torch.empty(2, 3, device="meta"), torch.empty(2, 4, device="meta")])


def test_real_tensors_are_joined_and_ranges_are_real():
    with torch.device("meta"), LightMeta():
        assert torch.arange(3).tolist() == [0, 1, 2]
        assert torch.cat([torch.arange(2), torch.arange(1)]).tolist() == [0, 1, 0]
        assert torch.stack([torch.arange(2)]).tolist() == [[0, 1]]
