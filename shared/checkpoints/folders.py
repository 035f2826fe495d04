"""A Hugging Face folder: config.json, safetensors files in one piece or in shards, perhaps a tokenizer."""

import re
from pathlib import Path
from typing import Any, Final

from layermesh.shared.checkpoints.json_files import read_object
from layermesh.shared.checkpoints.safetensors_header import read_header
from layermesh.shared.checkpoints.tensors import Checkpoint, StoredTensor
from layermesh.shared.errors import CheckpointError, ModelNotFoundError, UnsupportedModelError

PICKLE_SUFFIXES: Final = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
_WEIGHTS: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_SHARD_NAME: Final = re.compile(r"[\w.-]{1,200}")
_TOKENIZER_FILES: Final = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "vocab.bpe",
    "spiece.model", "sentencepiece.bpe.model", "tekken.json",
)  # fmt: skip


def open_folder(path: Path) -> Checkpoint:
    """Return what the Hugging Face folder at `path` holds, reading configuration and headers only.

    Raises ModelNotFoundError where there is no folder, CheckpointError for files that are missing, damaged or
    contradict each other, UnsupportedModelError for weights in pickle files or in an unknown dtype.
    """
    if not path.is_dir():
        raise ModelNotFoundError(f"there is no folder {path}. Give the folder that holds config.json.")
    tensors = _read_tensors(path)
    _read_config(path)
    tokenizer_dir = path if any((path / name).is_file() for name in _TOKENIZER_FILES) else None
    return Checkpoint(path=path, config_dir=path, tokenizer_dir=tokenizer_dir, tensors=tensors)


def refuse_pickle(path: Path) -> UnsupportedModelError:
    """Return the error for weights that only `pickle` could read."""
    return UnsupportedModelError(
        f"{path} is a pickle file, and unpickling can run any code its author wrote. layermesh reads safetensors and "
        "GGUF: look for a safetensors revision of this model, or convert it where you trust it, with transformers' "
        "from_pretrained(...).save_pretrained(FOLDER)."
    )


def _read_config(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json, so nothing tells what model this is. Fetch it as well.")
    read_object(folder / "config.json")


def _read_tensors(folder: Path) -> dict[str, StoredTensor]:
    if (folder / _WEIGHTS).is_file():
        return read_header(folder / _WEIGHTS)
    if (folder / _INDEX).is_file():
        return _read_shards(folder)
    others = sorted(folder.glob("*.safetensors"))
    if len(others) == 1:
        return read_header(others[0])
    raise _no_weights(folder, others)


def _no_weights(folder: Path, others: list[Path]) -> CheckpointError | UnsupportedModelError:
    if others:
        names = ", ".join(file.name for file in others[:4])
        return CheckpointError(
            f"{folder} has {len(others)} safetensors files ({names}{', …' if len(others) > 4 else ''}) and no "
            f"{_INDEX} to say how they belong together. Fetch that file as well."
        )
    if files := sorted(folder.glob("*.gguf")):
        return CheckpointError(f"{folder} has no safetensors files. For its GGUF file, give that file: {files[0]}")
    if pickles := sorted(file for file in folder.iterdir() if file.suffix in PICKLE_SUFFIXES):
        return refuse_pickle(pickles[0])
    return CheckpointError(f"{folder} holds no weights: no {_WEIGHTS} and no {_INDEX}. Fetch the rest of the model.")


def _read_shards(folder: Path) -> dict[str, StoredTensor]:
    index = folder / _INDEX
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map. Fetch it again.")
    shards = {name: read_header(folder / name) for name in _shard_names(folder, weight_map)}
    tensors = {name: tensor for shard in shards.values() for name, tensor in shard.items()}
    for name, shard in weight_map.items():
        if name not in shards[shard]:
            raise CheckpointError(
                f"{index} places tensor {ascii(name)[:80]} in {shard}, which has none by that name. The files are not "
                "from the same version of the model: fetch them again."
            )
        tensors[name] = shards[shard][name]
    return tensors


def _shard_names(folder: Path, weight_map: dict[str, Any]) -> list[str]:
    for name in weight_map.values():
        if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name) or ".." in name:
            raise CheckpointError(
                f"{folder / _INDEX} names {ascii(name)[:80]} as a file of this folder. It is broken or made to do "
                "harm: get the model from another source."
            )
        if Path(name).suffix in PICKLE_SUFFIXES:
            raise refuse_pickle(folder / name)
    found = sorted(set(weight_map.values()))
    missing = [name for name in found if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(found)} shards, {missing[0]} first. The download was probably "
            "interrupted: fetch the model again."
        )
    return found
