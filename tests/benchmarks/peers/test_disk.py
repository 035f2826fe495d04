"""The raw reader reads every byte it counts, with and without direct reads."""

from pathlib import Path

import pytest

from tests.benchmarks.peers import disk, page_cache
from tests.benchmarks.peers.disk import MIB, ReadSetting, disk_rate, read_rate


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "first", tmp_path / "second"]
    paths[0].write_bytes(b"x" * (3 * MIB + 77))  # ends in the middle of a piece
    paths[1].write_bytes(b"y" * MIB)
    return paths


@pytest.mark.parametrize("flag", [disk.O_DIRECT, 0], ids=["direct", "buffered"])
def test_all_bytes_are_read(files: list[Path], flag: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "O_DIRECT", flag)
    counts = []
    read = disk._read

    def counting(*arguments) -> int:
        counts.append(read(*arguments))
        return counts[-1]

    monkeypatch.setattr(disk, "_read", counting)
    rate, _ = read_rate(files, ReadSetting(3, MIB), seconds=60)
    assert sum(counts) == sum(path.stat().st_size for path in files)
    assert rate > 0


def test_time_ends_it(files: list[Path]) -> None:
    rate, _ = read_rate(files, ReadSetting(2, MIB), seconds=0)
    assert rate == 0


def test_best_setting_is_named(files: list[Path]) -> None:
    found = disk_rate(files, (ReadSetting(1, MIB), ReadSetting(2, 2 * MIB)), seconds_each=1)
    assert found.setting in ("1 threads x 1 MiB", "2 threads x 2 MiB")
    assert found.bytes_per_second > 0


def test_without_root_only_the_files_are_dropped(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_cache, "DROP_CACHES", files[0].parent / "no" / "such" / "switch")
    assert page_cache.drop(files) == "model dropped"
