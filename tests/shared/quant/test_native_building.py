"""How the kernel in C is built and found, and what happens where it cannot be."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from layermesh.shared.quant import multiplying
from layermesh.shared.quant.multiplying import multiply
from layermesh.shared.quant.native import checking, kernel, openmp
from layermesh.shared.quant.native.building import built_library
from layermesh.shared.quant.native.checking import computes_correctly
from layermesh.shared.quant.native.kernel import native_kernel
from layermesh.worker import compute_fingerprint
from tests.shared.quant.kernels import COMPILER, needs_compiler, relative_error
from tests.shared.quant.test_quants import FORMS, some_quants

ROOT = Path(__file__).parents[3]

pytestmark = needs_compiler


@pytest.fixture
def fresh(tmp_path, monkeypatch) -> Path:
    """Nothing built yet, and nothing known; the folder that will be built into."""
    monkeypatch.setenv("LAYERMESH_HOME", str(tmp_path))
    monkeypatch.delenv("LAYERMESH_NATIVE", raising=False)
    monkeypatch.setattr(kernel, "native_kernel", kernel.native_kernel.__wrapped__)
    return tmp_path / "native"


def test_it_is_built_once_for_this_user_alone(fresh):
    assert native_kernel.__wrapped__() is not None
    (library,) = fresh.iterdir()
    assert stat.S_IMODE(fresh.stat().st_mode) == 0o700
    assert stat.S_IMODE(library.stat().st_mode) == 0o600
    built = library.stat().st_mtime_ns
    assert native_kernel.__wrapped__() is not None
    assert (list(fresh.iterdir()), library.stat().st_mtime_ns) == ([library], built)


def _no_compiler(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(kernel, "find_compiler", lambda: None)


def _switched_off(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("LAYERMESH_NATIVE", "0")


def _broken_compiler(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    broken = folder.with_name("broken-cc")
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))


def _no_folder(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    folder.write_text("in the way")


def _others_folder(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


def _linked_folder(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    elsewhere = folder.with_name("elsewhere")
    elsewhere.mkdir(mode=0o700)
    folder.symlink_to(elsewhere)


def _linked_library(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    library = built_library(folder, COMPILER)
    library.rename(library.with_name("moved"))
    library.symlink_to("moved")


def _damaged_library(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    built_library(folder, COMPILER).write_bytes(b"\x7fELF")


def _wrong_results(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(checking, "_error", lambda *_: 0.01)


def _unknown_openmp(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(openmp, "torchs_runtime", lambda *_: None)


@pytest.mark.parametrize(
    "trouble",
    [
        _no_compiler, _switched_off, _broken_compiler, _damaged_library, _wrong_results, _unknown_openmp,
    ],
)  # fmt: skip
def test_without_it_torch_computes(trouble, fresh, monkeypatch):
    trouble(monkeypatch, fresh)
    assert native_kernel.__wrapped__() is None
    monkeypatch.setattr(multiplying, "native_kernel", native_kernel.__wrapped__)
    quants = some_quants(FORMS[0], 64, 2)
    inputs = torch.randn(1, 64)
    made = multiply(inputs, *quants.pack(64), FORMS[0], 64)
    assert relative_error(made, (inputs @ quants.dequantise().t()).double()) < 2**-7


@pytest.mark.parametrize("trouble", [_no_folder, _others_folder, _linked_folder, _linked_library])
def test_where_the_folder_is_not_its_own_it_is_built_in_a_temporary_one(trouble, fresh, monkeypatch):
    trouble(monkeypatch, fresh)
    before = sorted(fresh.iterdir()) if fresh.is_dir() else None
    assert native_kernel.__wrapped__() is not None
    assert (sorted(fresh.iterdir()) if fresh.is_dir() else None) == before


def test_wrong_kernels_are_found_out(native):
    class Wrong:
        suits_many = native.suits_many

        def product(self, *matrices, many):
            made = native.product(*matrices, many=many)
            if many is self.where:
                made[-1, -1] *= 1.5
            return made

    assert computes_correctly(native)
    for Wrong.where in (False, True):
        assert not computes_correctly(Wrong())


def test_the_compute_fingerprint_tells_with_from_without(monkeypatch):
    if native_kernel() is None:
        pytest.skip("it is not to be had here")
    with_it = compute_fingerprint.compute_fingerprint(torch.device("cpu"))
    monkeypatch.setattr(compute_fingerprint, "native_kernel", lambda: None)
    assert compute_fingerprint.compute_fingerprint(torch.device("cpu")) != with_it


def test_two_processes_build_at_once(fresh):
    code = "from layermesh.shared.quant.native.kernel import native_kernel; print(native_kernel() is not None)"
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    runs = [subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [run.communicate(timeout=120)[0] for run in runs] == ["True\n", "True\n"]
    assert [path.suffix for path in fresh.iterdir()] == [".so"]


TORCH = Path("/env/torch")


@pytest.mark.parametrize(
    ("loaded", "found"),
    [
        (["/env/torch/lib/libgomp.so.1", "/usr/lib/libc.so.6"], 0),
        (["/usr/lib/libgomp.so.1", "/env/torch/lib/libgomp-a34b3233.so.1"], 1),
        (["/env/sklearn.libs/libgomp.so.1", "/env/torch.libs/libgomp.so.1"], 1),
        (["/usr/lib/libgomp.so.1", "/usr/lib/libgomp.so.1"], 0),
        (["/usr/lib/libiomp5.so", "/usr/lib/libgomp.so.1"], None),
        (["/usr/lib/libc.so.6"], None),
    ],
)
def test_torchs_openmp_is_the_one_beside_it_or_the_only_one(loaded, found):
    assert openmp.torchs_runtime(loaded, TORCH) == (None if found is None else loaded[found])
