"""The table of tensors at the head of a safetensors file, read without its library and believed only when checked.

The format: eight bytes of length, that many bytes of JSON, then the data (https://github.com/huggingface/safetensors).
"""

from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from layermesh.shared.checkpoints.json_files import parse_object, unreadable
from layermesh.shared.checkpoints.layout import check_extents, check_name, check_shape, truncated
from layermesh.shared.checkpoints.tensors import TORCH_DTYPES, StoredTensor
from layermesh.shared.errors import CheckpointError, UnsupportedModelError

MAX_HEADER_BYTES = 100_000_000
_LENGTH_BYTES = 8


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Return where each tensor of the safetensors file at `path` lies, by name, without touching their data.

    Raises CheckpointError for a file that is truncated, damaged or contradicts itself, UnsupportedModelError for a
    dtype that torch has no name for.
    """
    try:
        with path.open("rb") as file:
            file_bytes = path.stat().st_size
            text = _read_text(path, file, file_bytes)
    except OSError as error:
        raise unreadable(path, error) from error
    data_start = _LENGTH_BYTES + len(text)
    entries = parse_object(path, text)
    _check_metadata(path, entries.pop("__metadata__", {}))
    tensors = {name: _stored_tensor(path, name, entry, data_start) for name, entry in entries.items()}
    check_extents(path, tensors.values(), data_start, file_bytes)
    return tensors


def _read_text(path: Path, file: BinaryIO, file_bytes: int) -> bytes:
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if file_bytes < _LENGTH_BYTES or length == 0 or length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path} is not a safetensors file: it has {file_bytes:,} bytes and its header would have {length:,}. "
            "Fetch it again."
        )
    if length > file_bytes - _LENGTH_BYTES:
        raise truncated(path, _LENGTH_BYTES + length, file_bytes)
    return file.read(length)


def _check_metadata(path: Path, metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path} has a __metadata__ entry that is not a table of strings. Fetch the file again.")


def _stored_tensor(path: Path, name: str, entry: Any, data_start: int) -> StoredTensor:
    check_name(path, name)
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{path} describes tensor {name} in a way safetensors has not. Fetch the file again.")
    encoding, shape = _encoding(path, name, entry["dtype"]), check_shape(path, name, entry["shape"])
    begin, end = _offsets(path, name, entry["data_offsets"])
    expected = prod(shape) * TORCH_DTYPES[encoding].itemsize
    if end - begin != expected:
        raise CheckpointError(
            f"{path} gives tensor {name} {end - begin:,} bytes, where {encoding} {list(shape)} takes {expected:,}. "
            "The file is broken: fetch it again."
        )
    return StoredTensor(name, encoding, shape, path, data_start + begin, expected)


def _encoding(path: Path, name: str, dtype: Any) -> str:
    if isinstance(dtype, str) and dtype in TORCH_DTYPES:
        return dtype
    raise UnsupportedModelError(
        f"{path} stores tensor {name} as {ascii(dtype)[:40]}, a dtype that layermesh does not read. It reads "
        f"{', '.join(TORCH_DTYPES)}: look for another version of the model."
    )


def _offsets(path: Path, name: str, offsets: Any) -> tuple[int, int]:
    if isinstance(offsets, list) and len(offsets) == 2 and all(type(offset) is int for offset in offsets):
        begin, end = offsets
        if 0 <= begin <= end:
            return begin, end
    raise CheckpointError(f"{path} gives tensor {name} impossible offsets: {ascii(offsets)[:80]}. Fetch the file again.")
