import psutil
import pytest
import torch

from layermesh.shared.errors import ResourceError
from layermesh.worker import machine
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
    assert 0 < free_memory(CPU) < psutil.virtual_memory().available


@pytest.mark.parametrize(
    ("limit", "usage", "stat", "room"),
    [
        ("1000000", "300000", "", 700000),
        ("1000000", "990000", "anon 1\ninactive_file 500000\nactive_file 90000\n", 600000),
        ("max", "300000", "", None),
        ("1000000", None, "", None),
    ],
    ids=["limited", "full of cached files", "unlimited", "unreadable"],
)
def test_a_cgroup_bounds_what_is_free_and_cached_files_do_not_count(tmp_path, monkeypatch, limit, usage, stat, room):
    for name, text in {"memory.max": limit, "memory.current": usage, "memory.stat": stat}.items():
        if text is not None:
            (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "_CGROUP_FILES", ((tmp_path / "memory.max", tmp_path / "memory.current"),))
    assert free_memory(CPU) == pytest.approx((room or psutil.virtual_memory().available) * 0.8, rel=0.05)
