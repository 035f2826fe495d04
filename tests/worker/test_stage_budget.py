import pytest
import torch

from layermesh.shared.process_limits import FreeMemory
from layermesh.worker import opening
from layermesh.worker.opening import choose_budget

CPU, CARD = torch.device("cpu"), torch.device("cuda", 0)
LIMIT = "/sys/fs/cgroup/a/memory.max is 2GB"


@pytest.fixture
def limited(monkeypatch):
    monkeypatch.setattr(opening, "limited_memory", lambda: [FreeMemory(10**12, "wide"), FreeMemory(10**9, LIMIT)])
    monkeypatch.setattr(opening, "free_memory", lambda asked: FreeMemory(700, LIMIT if asked == CPU else None))


@pytest.mark.parametrize(
    ("device", "device_bytes", "host_bytes", "expected"),
    [
        (CPU, None, 2 * 10**9, (10**9, None)),
        (CPU, 3 * 10**9, None, (10**9, None)),
        (CARD, 5 * 10**9, 2 * 10**9, (5 * 10**9, 10**9)),
    ],
    ids=["host", "device on the host", "beside a card"],
)
def test_what_is_named_is_reduced_to_what_limits_leave_and_that_is_said(limited, device, device_bytes, host_bytes, expected):
    budget = choose_budget(device, device_bytes, host_bytes)
    assert (budget.device_bytes, budget.host_bytes) == expected
    assert budget.limit == LIMIT
    assert " is reduced to 1.00GB, which is all that a limit leaves: /sys/fs/cgroup/a/memory.max is 2GB." in budget.notice


@pytest.mark.parametrize(
    ("device", "device_bytes", "host_bytes", "expected"),
    [(CPU, None, 10**9, (10**9, None)), (CPU, None, None, (700, None)), (CARD, 5 * 10**9, None, (5 * 10**9, 350))],
    ids=["named", "free", "on a card"],
)
def test_what_fits_the_limits_stays(limited, device, device_bytes, host_bytes, expected):
    budget = choose_budget(device, device_bytes, host_bytes)
    assert (budget.device_bytes, budget.host_bytes, budget.notice) == (*expected, None)
