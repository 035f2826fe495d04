import os
import time
from pathlib import Path

import pytest

from layermesh.shared.unpacked import note_sources, note_use, sweep_unpacked

DAY = 24 * 3600


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    return path


def head(cache: Path, name: str, source: Path | None, age_seconds: float = 0) -> Path:
    folder = cache / name
    folder.mkdir(parents=True)
    if source is not None:
        note_sources(folder, [source])
    os.utime(folder, (time.time() - age_seconds,) * 2)
    return folder


def test_a_head_stays_while_its_file_does(tmp_path: Path, source: Path) -> None:
    folder = head(tmp_path / "cache", "a", source, 29 * DAY)
    assert sweep_unpacked(tmp_path / "cache") == 0
    assert folder.is_dir()


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_bytes(b"longer"), lambda path: os.utime(path, (1, 1))])
def test_a_head_goes_with_its_file(tmp_path: Path, source: Path, change) -> None:
    folder = head(tmp_path / "cache", "a", source)
    num_bytes = (folder / "source.json").stat().st_size
    change(source)
    assert sweep_unpacked(tmp_path / "cache") == num_bytes
    assert not folder.exists()


def test_what_nobody_uses_goes(tmp_path: Path, source: Path) -> None:
    unused, used = (head(tmp_path / "cache", name, source, 31 * DAY) for name in "ab")
    note_use(used)
    sweep_unpacked(tmp_path / "cache")
    assert (unused.exists(), used.exists()) == (False, True)


@pytest.mark.parametrize("noted", [None, "", "[]", '{"path": 1}'])
def test_a_head_of_nobody_knows_what_goes(tmp_path: Path, noted: str | None) -> None:
    folder = head(tmp_path / "cache", "a", None)
    if noted is not None:
        (folder / "source.json").write_text(noted)
    sweep_unpacked(tmp_path / "cache")
    assert not folder.exists()


def test_an_unpacking_goes_only_when_it_is_old(tmp_path: Path) -> None:
    old, new = (head(tmp_path / "cache", f"unpacking-{age}", None, age) for age in (3700, 60))
    sweep_unpacked(tmp_path / "cache")
    assert (old.exists(), new.exists()) == (False, True)


def test_without_a_cache_there_is_nothing_to_do(tmp_path: Path) -> None:
    assert sweep_unpacked(tmp_path / "cache") == 0
