import pytest
import torch
from torch import nn

from layermesh.shared.model.blocks import Block, BlockTensor
from layermesh.worker.binding import Binder
from layermesh.worker.buffers import LoadedTensors


@pytest.fixture
def model():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.BatchNorm1d(2))
    return model.eval()


def block(*names: tuple[str, ...]) -> Block:
    return Block("x", 0, tuple(BlockTensor(each[0], each, (2, 2), torch.float32, 0) for each in names), ())


def test_modules_compute_with_a_block_while_it_is_bound(model):
    tied = block(("0.weight", "1.weight"))
    tensors = LoadedTensors({"0.weight": torch.eye(2)})
    binder = Binder(model)
    for _ in range(2):
        absent = model[0].weight
        with binder.bound(tied, tensors):
            assert model[0].weight is model[1].weight
            assert model[0].weight.data_ptr() == tensors["0.weight"].data_ptr()
            assert not model[0].weight.requires_grad
        assert model[0].weight is absent
        assert model[1].weight.is_meta


def test_an_error_unbinds_all_the_same(model):
    with pytest.raises(KeyboardInterrupt), Binder(model).bound(block(("0.weight",)), eye()):
        raise KeyboardInterrupt
    assert model[0].weight.is_meta


def test_what_lasts_stays_until_it_is_taken_out(model):
    binder, weight = Binder(model), block(("0.weight",))
    tensors = eye()
    for _ in range(2):
        with binder.bound(weight, tensors, lasting=True):
            pass
        assert model[0].weight is tensors.parameters["0.weight"]
    binder.unbind(weight)
    binder.unbind(weight)
    assert model[0].weight.is_meta


def eye():
    return LoadedTensors({"0.weight": torch.eye(2)})


def test_buffers_stay_buffers(model):
    mean = torch.ones(2)
    Binder(model).bind(block(("2.running_mean",)), LoadedTensors({"2.running_mean": mean}))
    assert model[2].running_mean is mean
    assert "running_mean" in dict(model[2].named_buffers())
