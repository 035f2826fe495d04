import psutil
import pytest
import torch

from layermesh.shared import process_limits
from layermesh.shared.errors import ResourceError
from layermesh.shared.process_limits import FreeMemory
from layermesh.worker.machine import free_memory, pick_device, pick_dtype

CPU = torch.device("cpu")


def test_the_cpu_can_be_asked_for():
    assert pick_device("cpu") == CPU


@pytest.mark.parametrize("name", ["tpu9", "mps", "cuda:99", "meta", ""])
def test_devices_that_are_not_here_are_named_with_what_to_say(name):
    with pytest.raises(ResourceError, match=f"{name!r}.*"):
        pick_device(name)


@pytest.mark.parametrize("stored", [None, torch.float32, torch.float16], ids=str)
def test_the_cpu_computes_in_float32_what_is_not_bfloat16(stored):
    assert pick_dtype(stored, CPU) is torch.float32


@pytest.mark.parametrize(
    ("capability", "stored", "computed"),
    [
        ((8, 0), torch.bfloat16, torch.bfloat16),
        ((7, 5), torch.bfloat16, torch.float16),
        ((8, 9), None, torch.bfloat16),
        ((7, 5), None, torch.float16),
        ((9, 0), torch.float16, torch.float16),
        ((9, 0), torch.float32, torch.float32),
        ((9, 0), torch.float64, torch.float32),
    ],
    ids=str,
)
def test_cards_compute_in_what_they_do_well(monkeypatch, capability, stored, computed):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert pick_dtype(stored, torch.device("cuda", 0)) is computed


@pytest.mark.parametrize(("name", "index"), [(None, 0), ("cuda", 0), ("cuda:1", 1)])
def test_cards_have_a_number(monkeypatch, name, index):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device(name) == torch.device("cuda", index)


def test_free_memory_leaves_some():
    assert 0 < free_memory(CPU).num_bytes < psutil.virtual_memory().available


def test_free_memory_is_a_share_of_what_the_tightest_limit_leaves(monkeypatch):
    limits = [FreeMemory(1 << 60, "a wide limit"), FreeMemory(1000, "a tight limit")]
    monkeypatch.setattr(process_limits, "limited_memory", lambda _system: limits)
    assert free_memory(CPU) == FreeMemory(800, "a tight limit")
