import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from layermesh.shared.errors import CheckpointError
from layermesh.shared.machine_profile import MachineProfile
from layermesh.shared.process_limits import FreeMemory
from layermesh.shared.quant.native.kernel import NativeKernel, native_kernel
from layermesh.worker import disk_rate, measuring, opening, weight_rates
from layermesh.worker.compute_fingerprint import compute_fingerprint, device_name
from layermesh.worker.disk_rate import FALLBACK_RATE, measure_disk
from layermesh.worker.files import FileReader
from layermesh.worker.machine import pick_dtype
from layermesh.worker.measuring import STALE_SECONDS, budgets, measure_rates, profile_machine
from layermesh.worker.profile_cache import ProfileCache
from layermesh.worker.weight_rates import measure_weight_rates
from tests.running import num_descriptors

CPU = torch.device("cpu")
CARD = torch.device("cuda", 0)
SLOW_SECONDS = 10.0  # three on two cores that nobody else is using
BUDGET = 256 << 20


def test_a_machine_is_measured_soon_and_nothing_is_left(tmp_path: Path) -> None:
    began, before = time.monotonic(), num_descriptors()
    profile = measure_rates(CPU, tmp_path / "store", BUDGET)
    assert time.monotonic() - began < SLOW_SECONDS
    fits_bfloat16 = pick_dtype(torch.bfloat16, CPU) is torch.bfloat16 or native_kernel() is not None
    assert set(profile.weight_rates) == {"float32", "int4", "int8"} | ({"bfloat16"} if fits_bfloat16 else set())
    assert all(1e7 < rate < 1e13 for rate in (*profile.weight_rates.values(), profile.disk_rate, profile.flops))
    assert profile.bus_rate == 0
    assert profile.checked() is profile
    assert list((tmp_path / "store").iterdir()) == []
    assert num_descriptors() == before


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_the_threads_that_computed_do_not_stay(tmp_path: Path) -> None:
    """A process with more of them than cores has those of its stage sleep between any two products."""
    counting = """
import os, sys, time, torch
from pathlib import Path
from layermesh.worker.measuring import profile_machine

def num_threads():
    return len(os.listdir("/proc/self/task"))

before = num_threads()
profile_machine(torch.device("cpu"), Path(sys.argv[1]), host_memory=1 << 28)
deadline = time.monotonic() + 20
while num_threads() > before and time.monotonic() < deadline:
    time.sleep(0.01)
print(num_threads() - before)
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", counting, str(tmp_path)]
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout == "0\n"


@pytest.fixture
def filled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of every tensor that measuring fills."""
    sizes: list[int] = []
    fill = weight_rates._filled

    def counted(*arguments: object) -> torch.Tensor:
        made = fill(*arguments)  # type: ignore[arg-type]
        sizes.append(made.nbytes)
        return made

    monkeypatch.setattr(weight_rates, "_filled", counted)
    return sizes


def test_a_budget_bounds_what_measuring_takes(filled: list[int]) -> None:
    rates = measure_weight_rates(CPU, 128 << 20, seconds=0)
    assert sum(filled) <= len(rates) * (64 << 20)


@pytest.mark.skipif(native_kernel() is None, reason="the kernel in C cannot be built here")
def test_caches_are_emptied_of_all_that_is_measured(filled: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    chilled: list[int] = []
    chill = NativeKernel.chill

    def counted(kernel: NativeKernel, weights: torch.Tensor) -> bool:
        before = weights.clone()
        done = chill(kernel, weights)
        assert torch.equal(weights, before)
        chilled.append(weights.nbytes)
        return done

    monkeypatch.setattr(NativeKernel, "chill", counted)
    measure_weight_rates(CPU, 128 << 20, seconds=0)
    assert sum(chilled) == 3 * sum(filled)  # once for what is made once, and before each of the two passes that count


@pytest.mark.parametrize("spoil", ["no room", "no folder", "read-only", "unreadable"])
def test_a_disk_that_cannot_be_measured_is_taken_for_a_slow_one(
    spoil: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path
    if spoil == "no room":
        monkeypatch.setattr(disk_rate, "free_bytes", lambda _folder: 1000)
    elif spoil == "no folder":
        folder = tmp_path / "gone"
    elif spoil == "read-only":
        monkeypatch.setattr(disk_rate.tempfile, "TemporaryDirectory", _refuse)  # root may write anywhere
    else:
        monkeypatch.setattr(FileReader, "read_into", _fail)
    assert measure_disk(folder, 32 << 20) == FALLBACK_RATE
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_measurement_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".measuring-old").mkdir()
    (tmp_path / ".measuring-old" / "disk").write_bytes(b"x")
    later = SimpleNamespace(monotonic=time.monotonic, time=lambda: time.time() + 7200)
    monkeypatch.setattr(disk_rate, "time", later)
    assert measure_disk(tmp_path, 16 << 20) > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("device", "device_memory", "host_memory", "expected"),
    [
        (CPU, None, None, (1000, 0)),
        (CPU, None, 700, (700, 0)),
        (CPU, 500, 700, (500, 0)),
        (CARD, None, None, (400, 500)),
        (CARD, 300, 200, (300, 200)),
    ],
    ids=str,
)
def test_budgets_are_given_or_what_is_free(
    device: torch.device, device_memory: int | None, host_memory: int | None, expected: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(opening, "free_memory", lambda asked: FreeMemory(1000 if asked.type == "cpu" else 400))
    assert budgets(device, device_memory, host_memory) == expected


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The stores for which rates were measured; it takes no time."""
    stores: list[Path] = []

    def measure(device: torch.device, store: Path, budget_bytes: int) -> MachineProfile:
        stores.append(store)
        return MachineProfile(0, 0, 0.0, 1e9, {"int4": 2e10}, 1e11, compute_fingerprint(device))

    monkeypatch.setattr(measuring, "measure_rates", measure)
    return stores


@pytest.mark.parametrize(
    ("change", "times"),
    [
        ({}, 1),
        ({"days": 6.9}, 1),
        ({"days": 7.1}, 2),
        ({"days": -0.2}, 1),
        ({"days": -30}, 2),
        ({"threads": 1}, 2),
        ({"cores": 77}, 2),
        ({"memory": 3 << 30}, 2),
        ({"memory": 1 << 20}, 1),
        ({"store": "other"}, 2),
        ({"damaged": True}, 2),
    ],
    ids=str,
)
def test_rates_are_measured_again_when_they_are_old_or_something_changed(
    change: dict[str, float],
    times: int,
    measured: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    one_thread: None,
) -> None:
    torch.set_num_threads(2)
    memory = SimpleNamespace(total=16 << 30, available=8 << 30)
    monkeypatch.setattr(measuring.psutil, "virtual_memory", lambda: memory)
    cache = ProfileCache(tmp_path / "profile.msgpack")
    first = profile_machine(CPU, tmp_path, host_memory=1000, cache=cache)
    now = time.time() + 86400 * change.get("days", 0)
    monkeypatch.setattr(measuring, "time", SimpleNamespace(time=lambda: now))
    memory.total += int(change.get("memory", 0))
    if "cores" in change:
        monkeypatch.setattr(measuring, "num_processors", lambda: change["cores"])
    if "threads" in change:
        torch.set_num_threads(1)
    if "damaged" in change:
        (tmp_path / "profile.msgpack").write_bytes(b"\xc1")
    second = profile_machine(CPU, tmp_path / str(change.get("store", "")), host_memory=2000, cache=cache)
    assert len(measured) == times
    assert (first.device_bytes, second.device_bytes) == (1000, 2000)
    assert second.age(now) <= STALE_SECONDS


def test_the_fingerprint_names_what_bits_depend_on(one_thread: None) -> None:
    text = compute_fingerprint(CPU)
    assert f"torch {torch.__version__}" in text
    assert "transformers " in text
    assert torch.backends.cpu.get_cpu_capability() in text
    assert "1 threads" in text
    assert text == compute_fingerprint(CPU)
    assert device_name(CPU) == "cpu, 1 threads"


def _refuse(*_arguments: object, **_options: object) -> object:
    raise PermissionError(13, "Permission denied")


def _fail(*_arguments: object) -> None:
    raise CheckpointError("the disk is gone")
