"""Quicker and leaner stand-ins for what surrounds the readers."""

from pathlib import Path

import pytest

from layermesh.shared.checkpoints import gguf, unpack_gguf
from layermesh.shared.checkpoints.gguf_split import read_gguf


@pytest.fixture
def unpack_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpack GGUF files in this process: what the child does, without the seconds that starting it takes."""

    def unpack(path: Path, folder: Path) -> None:
        unpack_gguf.unpack(read_gguf(path), folder)

    monkeypatch.setattr(gguf, "_run_child", unpack)


@pytest.fixture
def without_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `from_pretrained(gguf_file=...)` go on without accelerate, which it asks for and does not use on the CPU."""
    monkeypatch.setattr("transformers.modeling_utils.is_accelerate_available", lambda *_: True)
