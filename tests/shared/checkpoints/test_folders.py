"""Hugging Face folders, whole and in shards, as the hub leaves them and as nobody should."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from layermesh.shared.checkpoints import open_folder
from layermesh.shared.errors import CheckpointError, ModelError, ModelNotFoundError, UnsupportedModelError

INDEX = "model.safetensors.index.json"


def make_folder(folder: Path, **shards: list[str]) -> Path:
    """Write a folder with config.json and one tensor of two floats for each name; several files get an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    files = {f"{file}.safetensors": names for file, names in shards.items()}
    for file, names in files.items():
        save_file({name: torch.tensor([1.0, 2.0]) for name in names}, folder / file)
    if len(files) > 1:
        write_index(folder, {name: file for file, names in files.items() for name in names})
    return folder


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize(
    "shards",
    [{"model": ["a", "b"]}, {"model-1": ["a"], "model-2": ["b"]}, {"weights": ["a", "b"]}],
    ids=["whole", "shards", "one file of another name"],
)
def test_folders_list_their_tensors(tmp_path, shards):
    checkpoint = open_folder(make_folder(tmp_path / "model", **shards))
    assert sorted(checkpoint.tensors) == ["a", "b"]
    assert checkpoint.config_dir == checkpoint.path == tmp_path / "model"
    assert checkpoint.gguf_architecture is None
    assert {tensor.path.stem for tensor in checkpoint.tensors.values()} == set(shards)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model"])
def test_the_tokenizer_is_the_folders_own(tmp_path, name):
    folder = make_folder(tmp_path / "model", model=["a"])
    assert open_folder(folder).tokenizer_dir is None
    (folder / name).write_text("{}")
    assert open_folder(folder).tokenizer_dir == folder


def test_links_into_a_cache_are_followed(tmp_path):
    blobs = make_folder(tmp_path / "blobs", model=["a"])
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(blob)
    assert open_folder(snapshot).tensors["a"].path == snapshot / "model.safetensors"


def test_a_config_that_asks_for_code_is_only_a_config(tmp_path):
    folder = make_folder(tmp_path / "model", model=["a"])
    (folder / "config.json").write_text('{"auto_map": {"AutoModel": "modeling.Model"}, "model_type": "llama"}')
    assert open_folder(folder).tensors


def test_nothing_there(tmp_path):
    with pytest.raises(ModelNotFoundError, match="there is no folder"):
        open_folder(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_pickles_are_refused_by_name(tmp_path, name):
    folder = make_folder(tmp_path / "model")
    (folder / name).write_bytes(b"\x80\x04.")
    with pytest.raises(UnsupportedModelError, match=f"{name} is a pickle file.*save_pretrained"):
        open_folder(folder)


def test_pickles_beside_safetensors_do_not_matter(tmp_path):
    folder = make_folder(tmp_path / "model", model=["a"])
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert open_folder(folder).tensors


def map_to(shard: object) -> Callable[[Path], object]:
    return lambda folder: write_index(folder, {"a": shard})


def config_folder(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()


def pipe(folder: Path) -> None:
    (folder / "model-1.safetensors").unlink()
    os.mkfifo(folder / "model-1.safetensors")


def only_config(folder: Path) -> None:
    for file in (folder / INDEX, *folder.glob("*.safetensors")):
        file.unlink()


BREAKS: dict[str, Callable[[Path], object]] = {
    "no config": lambda folder: (folder / "config.json").unlink(),
    "config is a list": lambda folder: (folder / "config.json").write_text("[]"),
    "config is not JSON": lambda folder: (folder / "config.json").write_text("{"),
    "config is a folder": config_folder,
    "no index": lambda folder: (folder / INDEX).unlink(),
    "index without a map": lambda folder: (folder / INDEX).write_text("{}"),
    "index maps to numbers": map_to(1),
    "index maps to lists": map_to(["model-1.safetensors"]),
    "shard outside": map_to("../blobs/model.safetensors"),
    "shard is an absolute path": map_to("/etc/passwd"),
    "shard is the parent": map_to(".."),
    "shard with a line break": map_to("model-1.safetensors\n"),
    "shard missing": lambda folder: (folder / "model-2.safetensors").unlink(),
    "tensor not in its shard": map_to("model-2.safetensors"),
    "shard truncated": lambda folder: os.truncate(folder / "model-1.safetensors", 70),
    "shard empty": lambda folder: os.truncate(folder / "model-1.safetensors", 0),
    "shard is a pipe": pipe,
    "nothing but config": only_config,
}


@pytest.mark.parametrize("spoil", BREAKS.values(), ids=BREAKS)
def test_broken_folders_are_refused_with_advice(tmp_path, spoil):
    folder = make_folder(tmp_path / "model", **{"model-1": ["a"], "model-2": ["b"]})
    spoil(folder)
    with pytest.raises(CheckpointError, match=r"[.!:] ?.*(again|well|rest|source)\.?"):
        open_folder(folder)


def test_an_index_of_pickles_is_refused(tmp_path):
    folder = make_folder(tmp_path / "model")
    write_index(folder, {"a": "pytorch_model-1.bin"})
    with pytest.raises(UnsupportedModelError, match="pickle"):
        open_folder(folder)


def test_unreadable_files_are_ours_to_explain(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "model", model=["a"])

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ModelError, match="Permission denied"):
        open_folder(folder)


def test_folders_are_opened_without_the_heavy_libraries(tmp_path):
    folder = make_folder(tmp_path / "model", model=["a"])
    script = (
        "import sys; from pathlib import Path; from layermesh.shared.checkpoints import open_folder; "
        "open_folder(Path(sys.argv[1])); print({'transformers', 'gguf', 'safetensors'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", script, str(folder)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.strip() == "set()"
