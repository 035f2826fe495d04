"""Which reader a path is given to."""

from pathlib import Path

import pytest
import torch
from gguf_models import LLAMA
from gguf_writing import write_gguf
from safetensors.torch import save_file

from layermesh.shared.checkpoints import open_checkpoint
from layermesh.shared.errors import CheckpointError, ModelNotFoundError, UnsupportedModelError


def make_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({"a": torch.zeros(2)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", ["", "model.safetensors"], ids=["folder", "file in it"])
def test_folders(tmp_path, name):
    folder = make_folder(tmp_path / "model")
    assert open_checkpoint(folder / name, tmp_path / "cache").path == folder


@pytest.mark.usefixtures("unpack_here")
@pytest.mark.parametrize("name", ["tiny.gguf", "sha256-0123"], ids=["by name", "by its first bytes"])
def test_gguf_files(tmp_path, name):
    path = write_gguf(tmp_path / name, "llama", *LLAMA)
    checkpoint = open_checkpoint(path, tmp_path / "cache")
    assert (checkpoint.path, checkpoint.gguf_architecture) == (path, "llama")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("weights.safetensors", CheckpointError, "in a folder together with"),
        ("pytorch_model.bin", UnsupportedModelError, "pickle"),
        ("model.pt", UnsupportedModelError, "pickle"),
        ("model.pth", UnsupportedModelError, "pickle"),
        ("model.ckpt", UnsupportedModelError, "pickle"),
        ("model.onnx", UnsupportedModelError, "neither"),
        ("model.gguf", CheckpointError, "not a GGUF file"),
        ("missing/model.gguf", ModelNotFoundError, "no model at"),
    ],
)
def test_other_files_are_refused(tmp_path, name, error, message):
    path = tmp_path / name
    if "/" not in name:
        path.write_bytes(b"whatever this is, it is no model")
    with pytest.raises(error, match=message):
        open_checkpoint(path, tmp_path / "cache")
