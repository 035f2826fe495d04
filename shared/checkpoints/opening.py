"""Which kind of checkpoint a path is."""

from pathlib import Path

from layermesh.shared.checkpoints.folders import PICKLE_SUFFIXES, open_folder, refuse_pickle
from layermesh.shared.checkpoints.gguf import GGUF_MAGIC, open_gguf
from layermesh.shared.checkpoints.json_files import unreadable
from layermesh.shared.checkpoints.tensors import Checkpoint
from layermesh.shared.errors import CheckpointError, ModelNotFoundError, UnsupportedModelError


def open_checkpoint(path: Path, cache: Path) -> Checkpoint:
    """Return the checkpoint at `path`: a Hugging Face folder, or a GGUF file whose unpacked head goes to `cache`.

    Raises ModelNotFoundError where there is nothing, CheckpointError for broken files, UnsupportedModelError for kinds
    of files, models or quantisations that layermesh does not run.
    """
    if path.is_dir():
        return open_folder(path)
    if not path.is_file():
        raise ModelNotFoundError(
            f"there is no model at {path}. Give a Hugging Face folder, a .gguf file, a hub id or a pulled name."
        )
    if path.suffix == ".gguf" or _magic(path) == GGUF_MAGIC:
        return open_gguf(path, cache)
    if path.suffix == ".safetensors":
        return _open_lone_safetensors(path)
    if path.suffix in PICKLE_SUFFIXES:
        raise refuse_pickle(path)
    raise UnsupportedModelError(f"{path} is neither a GGUF file nor a Hugging Face folder. Give one of these.")


def _magic(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(len(GGUF_MAGIC))
    except OSError as error:
        raise unreadable(path, error) from error


def _open_lone_safetensors(path: Path) -> Checkpoint:
    if (path.parent / "config.json").is_file():
        return open_folder(path.parent)
    raise CheckpointError(
        f"{path} holds weights and nothing tells what model they are. Put it in a folder together with the model's "
        "config.json and tokenizer files, and give that folder."
    )
