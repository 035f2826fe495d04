"""Checkpoints of any number of layers, made of one: quick to write, and read from disk as a real one is.

Every layer is a file of its own and has the same weights; only shapes count here.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

INDEX = "model.safetensors.index.json"
FIRST = ".layers.0."
COPIED_BYTES = 16 << 20
PAGE_BYTES = 4096
NOISE_ELEMENTS = 1 << 22
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def write_one_layer(folder: Path, config: PreTrainedConfig, dtype: torch.dtype) -> Path:
    """Write a checkpoint of one layer with the sizes of `config`, in a file for the layer and one for the rest."""
    folder.mkdir(parents=True)
    config.num_hidden_layers = 1
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    config.architectures = [type(model).__name__]
    config.dtype = dtype
    config.save_pretrained(folder)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    noise = (torch.randn(NOISE_ELEMENTS, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)
    layer = {name: shape for name, shape in shapes.items() if FIRST in name}
    rest = {name: shape for name, shape in shapes.items() if FIRST not in name}
    for file, part in (("layer-00000.safetensors", layer), ("rest.safetensors", rest)):
        _write(folder / file, part, noise)
    _write_index(folder)
    return folder


def grow(source: Path, folder: Path, num_layers: int) -> Path:
    """Write into `folder` the checkpoint of one layer in `source` with `num_layers` of the same."""
    folder.mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix == ".json" and path.name not in (INDEX, "config.json"):
            shutil.copyfile(path, folder / path.name)
    config = _grown(json.loads((source / "config.json").read_text()), num_layers)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    for path in sorted(source.glob("*.safetensors")):
        header, start = _read_header(path)
        if not any(FIRST in name for name in header):
            _copy(path, folder / path.name, header, start)
            continue
        for number in range(num_layers):
            named = {name.replace(FIRST, f".layers.{number}."): entry for name, entry in header.items()}
            _copy(path, folder / f"layer-{number:05d}.safetensors", named, start)
    _write_index(folder)
    return folder


def layer_bytes(source: Path) -> int:
    """Return how much each further layer of the checkpoint in `source` takes."""
    return sum(
        path.stat().st_size for path in source.glob("*.safetensors") if any(FIRST in name for name in _read_header(path)[0])
    )


def other_bytes(source: Path) -> int:
    """Return how much the checkpoint in `source` takes without its layer."""
    return sum(path.stat().st_size for path in source.glob("*.safetensors")) - layer_bytes(source)


def _grown(config: dict[str, Any], num_layers: int) -> dict[str, Any]:
    config["num_hidden_layers"] = num_layers
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:1] * num_layers
    modules = config.get("quantization_config", {}).get("modules", {})
    for name in [name for name in modules if FIRST in name]:
        modules |= {name.replace(FIRST, f".layers.{number}."): modules[name] for number in range(num_layers)}
    return config


def _write(path: Path, shapes: dict[str, torch.Size], noise: torch.Tensor) -> None:
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + shape.numel() * noise.itemsize
        header[name] = {"dtype": DTYPES[noise.dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    data = noise.view(torch.uint8).numpy().data
    with path.open("wb") as file:
        file.write(_header(header))
        for start in range(0, offset, len(data)):
            file.write(data[: min(len(data), offset - start)])
        _leave_the_cache(file.fileno())


def _copy(source: Path, path: Path, header: dict[str, Any], start: int) -> None:
    with source.open("rb") as given, path.open("wb") as file:
        given.seek(start)
        file.write(_header(header))
        shutil.copyfileobj(given, file, COPIED_BYTES)
        _leave_the_cache(file.fileno())


def _leave_the_cache(descriptor: int) -> None:
    """Have what was written on the disk and nowhere else, so that it is read from there."""
    os.fsync(descriptor)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _header(entries: dict[str, Any]) -> bytes:
    text = json.dumps(entries, separators=(",", ":")).encode()
    length = -(-(len(text) + 8) // PAGE_BYTES) * PAGE_BYTES - 8
    return length.to_bytes(8, "little") + text.ljust(length)


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), 8 + length


def _write_index(folder: Path) -> None:
    names = dict(_names(folder))
    total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": names}))


def _names(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.glob("*.safetensors")):
        yield from ((name, path.name) for name in _read_header(path)[0] if name != "__metadata__")
