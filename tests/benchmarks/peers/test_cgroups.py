"""Where groups are made and what is written into them, in folders that look like the kernel's."""

from pathlib import Path

import pytest

from tests.benchmarks.peers import cgroups
from tests.benchmarks.peers.cgroups import Controller, capped, find_controller


@pytest.fixture
def version_1(tmp_path: Path) -> Path:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712")
    return tmp_path


@pytest.fixture
def version_2(tmp_path: Path) -> Path:
    (tmp_path / "cgroup.controllers").write_text("cpu memory")
    return tmp_path


@pytest.fixture(autouse=True)
def removable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of the kernel go although there are files in them; these do not."""

    def remove(folder: Path) -> None:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()

    monkeypatch.setattr(cgroups, "_remove", remove)


def found(root: Path) -> Controller:
    controller = find_controller(root)
    assert controller is not None
    return controller


def test_version_1(version_1: Path) -> None:
    controller = found(version_1)
    assert (controller.version, controller.parent) == (1, version_1 / "memory")
    with capped(1000, controller) as group:
        assert group is not None
        assert group.folder.parent == version_1 / "memory"
        assert (group.folder / "memory.limit_in_bytes").read_text() == "1000"
        assert (group.folder / "memory.memsw.limit_in_bytes").read_text() == "1000"
        (group.folder / "memory.max_usage_in_bytes").write_text("900\n")
        assert group.peak_bytes == 900
    assert not group.folder.exists()


def test_version_2(version_2: Path) -> None:
    controller = found(version_2)
    assert (controller.version, controller.parent) == (2, version_2)
    with capped(1000, controller) as group:
        assert group is not None
        assert (version_2 / "cgroup.subtree_control").read_text() == "+memory"
        assert (group.folder / "memory.max").read_text() == "1000"
        assert (group.folder / "memory.swap.max").read_text() == "0"
        assert group.peak_bytes is None  # kernels before 5.19 do not tell
    assert not group.folder.exists()


def test_group_goes_with_an_exception(version_1: Path) -> None:
    with pytest.raises(KeyError), capped(1000, found(version_1)) as group:
        raise KeyError
    assert group is not None
    assert not group.folder.exists()


def test_nothing_to_cap_with(tmp_path: Path, version_1: Path) -> None:
    assert find_controller(tmp_path / "nowhere") is None
    with capped(1000, None) as group:
        assert group is None
    with capped(None, found(version_1)) as group:
        assert group is None
