"""Tiny GGUF files of real architectures, written by the gguf package."""

from collections.abc import Iterable
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

WRITABLE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16", "F32")
CRAFTED = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ2_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS")
COLUMNS = 256  # every kind of block divides it


def stored_rows(rng: np.random.Generator, shape: tuple[int, ...], encoding: str) -> np.ndarray:
    """Return random values of `shape` as `encoding` stores them: [..., row_bytes] of uint8, or floats."""
    kind = GGMLQuantizationType[encoding]
    if encoding in WRITABLE:
        return quantize(rng.standard_normal(shape, dtype=np.float32) * 0.1 - 0.3, kind)
    block_elements, block_bytes = GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (*shape[:-1], shape[-1] // block_elements * block_bytes), dtype=np.uint8)
    return blocks & np.uint8(0xBF)  # whichever bytes are an fp16 scale, it stays below two


def write_gguf(
    path: Path,
    architecture: str,
    metadata: dict[str, object],
    shapes: dict[str, tuple[int, ...]],
    encodings: Iterable[str] = ("F32",),
    tokens: list[str] | None = None,
    piece_tensors: int = 0,
) -> Path:
    """Write random tensors of `shapes` (torch order), matrices in `encodings` by turns, vectors in F32.

    With `piece_tensors` it becomes several files of as many tensors, of which the first is returned.
    """
    rng, turns = np.random.default_rng(7), cycle(encodings)
    writer = GGUFWriter(path, architecture, split_max_tensors=piece_tensors)
    for key, value in metadata.items():
        if value is None:  # taken away from what others have
            continue
        add_value(writer, key if "." in key and key.startswith(("tokenizer", "general")) else f"{architecture}.{key}", value)
    if tokens is not None:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(tokens)
        writer.add_token_merges(["a b", "ab c"])
    for name, shape in shapes.items():
        quantised = len(shape) > 1 and shape[-1] % COLUMNS == 0
        encoding = next(turns) if quantised else "F32"
        raw_dtype = None if encoding in ("F32", "F16") else GGMLQuantizationType[encoding]
        rows = stored_rows(rng, shape, encoding)
        writer.add_tensor(name, -np.abs(rows) if name.endswith("ssm_a") else rows, raw_dtype=raw_dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return min(path.parent.glob(f"{path.stem}-00001-of-*.gguf")) if piece_tensors else path


def add_value(writer: GGUFWriter, key: str, value: object) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    else:
        writer.add_string(key, str(value))


def read_raw(path: Path, offset: int, num_bytes: int) -> torch.Tensor:
    """Return `num_bytes` of the file as a uint8 tensor."""
    with path.open("rb") as file:
        file.seek(offset)
        return torch.frombuffer(bytearray(file.read(num_bytes)), dtype=torch.uint8)
