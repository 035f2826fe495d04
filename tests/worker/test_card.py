from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from layermesh.worker.card import CudaCard
from layermesh.worker.card_memory import CardMemory
from layermesh.worker.out_of_memory import is_out_of_memory

DEVICE = torch.device("cuda", 1)
TOTAL = 4 << 30


class FakeDriver:
    """What torch.cuda keeps for a device."""

    def __init__(self, fraction=0.9, reserved=100 << 20):
        self.fraction, self.reserved, self.peak = fraction, reserved, 3 << 30
        self.refuses = False
        self.registered, self.asked, self.current = [], [], []

    def register(self, pointer, num_bytes, flags):
        assert self.current == [DEVICE]
        assert flags == 1
        self.registered.append((pointer, num_bytes))
        return 2 if self.refuses else 0

    def unregister(self, _pointer):
        assert self.current == [DEVICE]
        return 713 if self.refuses else 0

    def ones(self, *_args, device):
        self.asked.append(device)
        raise RuntimeError("CUDA error: out of memory")  # which was the registration's

    @contextmanager
    def device(self, device):
        self.current.append(device)
        yield
        self.current.pop()


@pytest.fixture
def driver(monkeypatch):
    driver = FakeDriver()

    def set_fraction(fraction, _device):
        driver.fraction = fraction

    def reset(_device):
        driver.peak = driver.reserved

    for name, stand_in in {
        "init": lambda: None,
        "device": driver.device,
        "cudart": lambda: SimpleNamespace(cudaHostRegister=driver.register, cudaHostUnregister=driver.unregister),
        "memory_reserved": lambda _device: driver.reserved,
        "max_memory_reserved": lambda _device: driver.peak,
        "reset_peak_memory_stats": reset,
        "get_per_process_memory_fraction": lambda _device: driver.fraction,
        "set_per_process_memory_fraction": set_fraction,
        "get_device_properties": lambda _device: SimpleNamespace(total_memory=TOTAL),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch, "ones", driver.ones)
    return driver


@pytest.mark.parametrize("refuses", [False, True], ids=["pinned", "refused"])
def test_memory_is_registered_where_it_lies_and_a_refusal_is_forgotten(driver, refuses):
    driver.refuses = refuses
    memory = torch.zeros(5000, dtype=torch.uint8)
    assert CudaCard(DEVICE).pin(memory) == (not refuses)
    assert driver.registered == [(memory.data_ptr(), 5000)]
    assert driver.asked == [DEVICE] * refuses
    CudaCard(DEVICE).unpin(memory)
    assert driver.asked == [DEVICE] * refuses * 2


def test_a_card_that_has_failed_is_done(monkeypatch):
    def fail(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    monkeypatch.setattr(torch.cuda, "empty_cache", fail)
    CudaCard(DEVICE).finish()
    CudaCard(DEVICE).give_back()


def test_a_bound_counts_from_what_was_taken_before_and_is_lifted(driver):
    memory = CardMemory(DEVICE, 1 << 30)
    assert driver.fraction * TOTAL == pytest.approx((1 << 30) + (100 << 20))
    assert memory.peak_bytes == 0
    driver.peak = driver.reserved + 77
    assert memory.peak_bytes == 77
    memory.close()
    memory.close()
    assert driver.fraction == 0.9


def test_a_bound_beyond_the_card_is_the_card(driver):
    memory = CardMemory(DEVICE, 100 << 30)
    assert driver.fraction == 1.0
    memory.close()


def test_nothing_is_bounded_that_nobody_named(driver):
    CardMemory(DEVICE).close()
    assert driver.fraction == 0.9


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (KeyboardInterrupt(), False),
    ],
    ids=lambda value: "" if isinstance(value, bool) else type(value).__name__,
)
def test_running_out_of_memory_is_recognised(error, is_one):
    assert is_out_of_memory(error) == is_one
