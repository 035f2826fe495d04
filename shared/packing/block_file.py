"""One block in one safetensors file, laid out so that it can be read in place.

The data begin at a multiple of 4096 bytes and every tensor at a multiple of 64, as far as sizes allow: the format has no gaps,
so tensors of odd sizes come last.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Final

import torch

from layermesh.shared.checkpoints.tensors import TORCH_DTYPES

DATA_ALIGNMENT: Final = 4096
TENSOR_ALIGNMENT: Final = 64
TEMPORARY_SUFFIX: Final = ".part"
_ENCODINGS: Final = {dtype: name for name, dtype in TORCH_DTYPES.items()}
_WRITE_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """A tensor to be written: its bytes come from `chunks`, in order, when their turn has come."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[torch.Tensor]] = field(repr=False)

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) * self.dtype.itemsize


def file_bytes(tensors: Sequence[PackedTensor]) -> int:
    """Return the size of the file that holds `tensors`."""
    return len(_header(_in_order(tensors))) + sum(tensor.num_bytes for tensor in tensors)


def write_block_file(path: Path, tensors: Sequence[PackedTensor], advance: Callable[[int], None]) -> tuple[int, bytes]:
    """Write `tensors` to `path`, whole or not at all, and return the file's size and sha256; `advance` hears of the bytes.

    Raises OSError as the system does.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        with temporary.open("wb", buffering=0) as file:
            written = _Hashing(file, advance)
            ordered = _in_order(tensors)
            written.write(memoryview(_header(ordered)))
            for tensor in ordered:
                for chunk in tensor.chunks():
                    written.write(chunk.contiguous().view(-1).view(torch.uint8).numpy().data)
            assert written.num_bytes == file_bytes(tensors), f"{path.name} came out in another size than promised"
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    flush_folder(path.parent)
    return written.num_bytes, written.digest.digest()


def flush_folder(folder: Path) -> None:
    """Have new names in `folder` on the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _Hashing:
    """A file that is hashed while it is written."""

    def __init__(self, file: Any, advance: Callable[[int], None]) -> None:
        self.digest = hashlib.sha256()
        self.num_bytes = 0
        self._file = file
        self._advance = advance

    def write(self, data: memoryview) -> None:
        for start in range(0, len(data), _WRITE_BYTES):
            piece = data[start : start + _WRITE_BYTES]
            while piece:
                count = self._file.write(piece)
                self.digest.update(piece[:count])
                self._advance(count)
                self.num_bytes += count
                piece = piece[count:]


def _in_order(tensors: Sequence[PackedTensor]) -> list[PackedTensor]:
    return sorted(tensors, key=lambda tensor: tensor.num_bytes % TENSOR_ALIGNMENT != 0)


def _header(tensors: Sequence[PackedTensor]) -> bytes:
    entries: dict[str, Any] = {}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.num_bytes
        entries[tensor.name] = {
            "dtype": _ENCODINGS[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    length = -(-(len(text) + 8) // DATA_ALIGNMENT) * DATA_ALIGNMENT - 8
    return length.to_bytes(8, "little") + text.ljust(length)
