from pathlib import Path

import pytest

from layermesh.shared import processor


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(processor, "_CACHES", tmp_path)
    monkeypatch.setattr(processor, "last_cache_bytes", processor.last_cache_bytes.__wrapped__)
    return tmp_path


def write(folder: Path, *sizes: str) -> None:
    for number, size in enumerate(sizes):
        (folder / f"index{number}").mkdir()
        (folder / f"index{number}" / "size").write_text(f"{size}\n")


def test_the_largest_cache_counts(caches: Path) -> None:
    write(caches, "48K", "2048K", "480M")
    assert processor.last_cache_bytes() == 480 << 20


@pytest.mark.parametrize("sizes", [(), ("",), ("big",), ("12",), ("K",)])
def test_a_system_that_does_not_say_has_none(caches: Path, sizes: tuple[str, ...]) -> None:
    write(caches, *sizes)
    assert processor.last_cache_bytes() == 0
