"""How checkpoints that arrive quantised store their weights, and the arithmetic that undoes it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import torch

from layermesh.shared.checkpoints.tensors import StoredTensor
from layermesh.shared.errors import CheckpointError, UnsupportedModelError

Method = Literal["fp8", "gptq", "awq", "mxfp4"]
Unpack = Callable[[Sequence[torch.Tensor]], torch.Tensor]  # decoded parts, float32, to weights, float32 [rows, columns]

_READABLE: Final = "block-scaled and per-tensor FP8, 4-bit GPTQ, 4-bit AWQ (gemm) and MXFP4"
_SCALES: Final = ("weight_scale_inv", "weight_scale")  # both are multiplied with
_PER_WORD: Final = 8  # 4-bit values in an int32
_AWQ_ORDER: Final = (0, 4, 1, 5, 2, 6, 3, 7)  # where the values of a word lie in it


@dataclass(frozen=True, slots=True)
class QuantScheme:
    """A way of storing quantised weights: FP8 in `block`s (rows, columns) under a scale, or 4-bit words.

    `zero_shift` is what GPTQ's first format leaves out of its stored zeros.
    """

    method: Method
    block: tuple[int, int] | None = None
    zero_shift: int = 0

    @classmethod
    def parse(cls, config: Mapping[str, Any], where: Path) -> "QuantScheme":
        """Read a `quantization_config`; raises UnsupportedModelError for what is not read."""
        method = str(config.get("quant_method") or config.get("quant_algo"))
        if method in ("fp8", "fbgemm_fp8") or (method == "compressed-tensors" and config.get("format") == "float-quantized"):
            return cls("fp8", _block(config.get("weight_block_size")))
        if method == "gptq" and config.get("bits") == 4:
            return cls("gptq", zero_shift=0 if config.get("checkpoint_format") == "gptq_v2" else 1)
        if method == "awq" and config.get("bits") == 4 and str(config.get("version", "gemm")).lower() == "gemm":
            return cls("awq")
        if method == "mxfp4":
            return cls("mxfp4")
        kind = f"{method[:40]}, {config['bits']} bits" if "bits" in config else method[:40]
        raise UnsupportedModelError(
            f"{where.name} is quantised ({kind}) in a way that layermesh cannot read; it reads {_READABLE}. Take another "
            "version, the unquantised checkpoint, or a GGUF file."
        )


@dataclass(frozen=True, slots=True)
class QuantisedTensor:
    """A weight as the model has it (`weight`, of which only name and shape mean something), and what it is unpacked from."""

    weight: StoredTensor
    parts: tuple[StoredTensor, ...]
    unpack: Unpack


def find_quantised(tensors: Mapping[str, StoredTensor], scheme: QuantScheme) -> dict[str, QuantisedTensor]:
    """Return the quantised weights among `tensors`, by name; raises CheckpointError where parts are missing or do not fit."""
    if scheme.method == "fp8":
        return {name: found for name, tensor in tensors.items() if (found := _find_fp8(name, tensor, tensors, scheme))}
    paths = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    return {f"{path}.weight": _find_words(path, tensors, scheme) for path in paths}


def unpack_fp8(parts: Sequence[torch.Tensor], block: tuple[int, int] | None) -> torch.Tensor:
    """Return weights of values `[rows, columns]` and their scale: one, one per row, or one per block."""
    values, scale = parts
    if scale.numel() == 1:
        return values * scale.view(())
    rows, columns = values.shape
    scale = scale.view(len(scale), -1)
    high, wide = block or (-(-rows // scale.shape[0]), -(-columns // scale.shape[1]))
    weights = values.clone()
    for number, of_rows in enumerate(scale):
        across = of_rows.repeat_interleave(wide)[:columns] if len(of_rows) > 1 else of_rows
        weights[number * high : (number + 1) * high] *= across
    return weights


def unpack_gptq(parts: Sequence[torch.Tensor], zero_shift: int) -> torch.Tensor:
    """Return weights of GPTQ's words `[columns / 8, rows]`, zeros `[groups, rows / 8]`, scales, and a group per column."""
    words, zeros, scales, *order = parts
    shifts = torch.arange(_PER_WORD, dtype=torch.int32) * 4
    quants = ((_words(words)[:, None] >> shifts[:, None]) & 15).flatten(0, 1)  # [columns, rows]
    zero = ((_words(zeros)[:, :, None] >> shifts) & 15).flatten(1) + zero_shift  # [groups, rows]
    groups = order[0].long() if order else torch.arange(len(quants)) // (len(quants) // len(scales))
    return ((quants - zero[groups]) * scales[groups]).t()


def unpack_awq(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return weights of AWQ's words `[columns, rows / 8]`, zeros `[groups, rows / 8]` and scales `[groups, rows]`."""
    words, zeros, scales = parts
    shifts = torch.tensor(_AWQ_ORDER, dtype=torch.int32) * 4
    quants, zero = (((_words(packed)[:, :, None] >> shifts) & 15).flatten(1) for packed in (words, zeros))
    groups = torch.arange(len(quants)) // (len(quants) // len(scales))
    return ((quants - zero[groups]) * scales[groups]).t()


def _find_fp8(
    name: str, tensor: StoredTensor, tensors: Mapping[str, StoredTensor], scheme: QuantScheme
) -> QuantisedTensor | None:
    if not tensor.encoding.startswith("F8_E") or not name.endswith(".weight") or len(tensor.shape) != 2:
        return None
    path = name.removesuffix("weight")
    scale = next((tensors[f"{path}{leaf}"] for leaf in _SCALES if f"{path}{leaf}" in tensors), None)
    if scale is None:
        raise CheckpointError(f"{tensor.path} has {name} in FP8 and no scale for it. Files may be missing: fetch it again.")
    return QuantisedTensor(tensor, (tensor, scale), lambda parts: unpack_fp8(parts, scheme.block))


def _find_words(path: str, tensors: Mapping[str, StoredTensor], scheme: QuantScheme) -> QuantisedTensor:
    words = tensors[f"{path}.qweight"]
    try:
        zeros, scales = tensors[f"{path}.qzeros"], tensors[f"{path}.scales"]
    except KeyError as error:
        raise CheckpointError(f"{words.path} lacks {error}, which {path} needs. Fetch the model again.") from error
    order = [tensors[f"{path}.g_idx"]] if scheme.method == "gptq" and f"{path}.g_idx" in tensors else []
    high, wide = words.shape if len(words.shape) == 2 else (0, 0)
    shape = (wide, high * _PER_WORD) if scheme.method == "gptq" else (wide * _PER_WORD, high)
    groups = scales.shape[0] if len(scales.shape) == 2 else 0
    if groups == 0 or scales.shape[1] != shape[0] or zeros.shape != (groups, shape[0] // _PER_WORD):
        raise CheckpointError(f"{words.path}: the parts of {path} do not fit together. Fetch the model again.")
    weight = replace(words, name=f"{path}.weight", shape=shape)
    parts = (_as_bytes(words), _as_bytes(zeros), scales, *order)
    if scheme.method == "gptq":
        return QuantisedTensor(weight, parts, lambda given: unpack_gptq(given, scheme.zero_shift))
    return QuantisedTensor(weight, parts, unpack_awq)


def _as_bytes(stored: StoredTensor) -> StoredTensor:
    """Words as bytes, which float32 holds exactly."""
    return replace(stored, encoding="U8", shape=(*stored.shape[:-1], stored.shape[-1] * 4))


def _words(decoded: torch.Tensor) -> torch.Tensor:
    return decoded.to(torch.uint8).contiguous().view(torch.int32)


def _block(size: Any) -> tuple[int, int] | None:
    if isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size):
        return int(size[0]), int(size[1])
    return None
