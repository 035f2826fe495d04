"""Where the tensors of a checkpoint lie on disk."""

from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

import torch

TORCH_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor as it lies in a file, row-major: `num_bytes` at `offset`, in `encoding`.

    `encoding` is a key of `TORCH_DTYPES`, or the name of a GGUF quantisation such as "Q4_K".
    """

    name: str
    encoding: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    num_bytes: int

    @property
    def num_elements(self) -> int:
        """Number of values once decoded."""
        return prod(self.shape)

    @property
    def dtype(self) -> torch.dtype | None:
        """The torch dtype of the stored bytes; None where they must be dequantised first."""
        return TORCH_DTYPES.get(self.encoding)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model as its files tell it: configuration, where its tokenizer is, and where each tensor lies.

    `path` is the folder or the GGUF file. `config_dir` holds config.json (and generation_config.json) in the form that
    transformers reads; `tokenizer_dir` is None for a model without a tokenizer, and `tokenizer_error` says why if the files
    have one that nobody can build. `gguf_architecture` is set for GGUF files, whose tensor names are GGUF's own.
    """

    path: Path
    config_dir: Path
    tokenizer_dir: Path | None
    tensors: dict[str, StoredTensor] = field(repr=False)
    gguf_architecture: str | None = None
    tokenizer_error: str | None = None


def stored_rows(table: StoredTensor, start: int, end: int) -> StoredTensor:
    """Return rows `[start, end)` of a stored matrix as a tensor of their own."""
    row_bytes = table.num_bytes // table.shape[0]
    return replace(
        table,
        shape=(end - start, *table.shape[1:]),
        offset=table.offset + start * row_bytes,
        num_bytes=(end - start) * row_bytes,
    )


def as_matrix(stored: StoredTensor) -> StoredTensor:
    """Return `stored` with all but its last dimension made one; a vector as a single row."""
    columns = stored.shape[-1] if stored.shape else 1
    return replace(stored, shape=(stored.num_elements // columns if columns else 0, columns))
