"""Tiny checkpoints in the forms that quantised models arrive in, each beside the same weights unquantised."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

FP8 = torch.float8_e4m3fn
AWQ_PACK_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)

Parts = Mapping[str, torch.Tensor]
Quantise = Callable[[torch.Tensor], tuple[Parts, torch.Tensor]]  # a weight to its parts by leaf, and what they stand for


def quantised(source: Path, folder: Path, quantise: Quantise, config: dict[str, Any]) -> tuple[Path, Path]:
    """Write the layers' matrices of `source` through `quantise`; return that folder and one of what they stand for."""
    dense, packed = folder / "dense", folder / "packed"
    shutil.copytree(source, dense)
    shutil.copytree(source, packed)
    tensors = load_file(source / "model.safetensors")
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if ".layers." in name and tensor.ndim == 2:
            parts, tensors[name] = quantise(tensor.float())
            stored |= {f"{name.removesuffix('weight')}{leaf}": part.contiguous() for leaf, part in parts.items()}
        else:
            stored[name] = tensor
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, dense / "model.safetensors")
    save_file(stored, packed / "model.safetensors")
    described = json.loads((packed / "config.json").read_text()) | {"quantization_config": config}
    (packed / "config.json").write_text(json.dumps(described))
    return packed, dense


def block_fp8(weight: torch.Tensor, block: int = 48) -> tuple[Parts, torch.Tensor]:
    """DeepSeek's: a scale for each block, those at the edges smaller."""
    rows, columns = weight.shape
    scale = torch.empty(-(-rows // block), -(-columns // block))
    values, made = torch.empty(weight.shape, dtype=FP8), torch.empty_like(weight)
    for row in range(len(scale)):
        for column in range(scale.shape[1]):
            place = slice(row * block, (row + 1) * block), slice(column * block, (column + 1) * block)
            scale[row, column] = weight[place].abs().max() / 448
            values[place] = (weight[place] / scale[row, column]).to(FP8)
            made[place] = values[place].float() * scale[row, column]
    return {"weight": values, "weight_scale_inv": scale}, made


def tensor_fp8(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    """One scale for all."""
    scale = weight.abs().max() / 448
    values = (weight / scale).to(FP8)
    return {"weight": values, "weight_scale": scale, "input_scale": torch.ones(())}, values.float() * scale


def row_fp8(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    """One scale per row."""
    scale = weight.abs().amax(dim=1, keepdim=True) / 448
    values = (weight / scale).to(FP8)
    return {"weight": values, "weight_scale": scale}, values.float() * scale


def gptq(weight: torch.Tensor, *, act_order: bool = False, zero_shift: int = 1) -> tuple[Parts, torch.Tensor]:
    """Words of eight values along the columns; with `act_order` the columns of a group lie anywhere."""
    rows, columns = weight.shape
    groups = torch.arange(columns) // 32
    if act_order:
        groups = groups[torch.randperm(columns, generator=torch.Generator().manual_seed(0))]
    quants, zeros, scales = _rounded(weight, groups)
    parts = {
        "qweight": _words(quants.t().reshape(columns // 8, 8, rows).transpose(1, 2)),
        "qzeros": _words((zeros - zero_shift).t().reshape(-1, rows // 8, 8)),
        "scales": scales.t().half(),
        "g_idx": groups.int(),
    }
    return parts, (quants - zeros[:, groups]) * scales[:, groups]


def awq(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    """Words of eight values along the rows, in an order of their own."""
    rows, columns = weight.shape
    groups = torch.arange(columns) // 32
    quants, zeros, scales = _rounded(weight, groups)
    order = list(AWQ_PACK_ORDER)
    parts = {
        "qweight": _words(quants.t().reshape(columns, rows // 8, 8)[..., order]),
        "qzeros": _words(zeros.t().reshape(-1, rows // 8, 8)[..., order]),
        "scales": scales.t().half(),
    }
    return parts, (quants - zeros[:, groups]) * scales[:, groups]


def _rounded(weight: torch.Tensor, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values `[rows, columns]`, zeros and scales `[rows, groups]`, all of them such as fit their places."""
    num_groups = int(groups.max()) + 1
    low = torch.stack([weight[:, groups == group].amin(1) for group in range(num_groups)], 1).clamp(max=0)
    high = torch.stack([weight[:, groups == group].amax(1) for group in range(num_groups)], 1).clamp(min=0)
    scales = ((high - low) / 15).half().float()
    zeros = (-low / scales).round().clamp(1, 15)
    return (weight / scales[:, groups] + zeros[:, groups]).round().clamp(0, 15), zeros, scales


def _words(values: torch.Tensor) -> torch.Tensor:
    """Pack the last dimension, eight values below 16, into int32."""
    shifted = values.to(torch.int64) << (torch.arange(8) * 4)
    word = shifted.sum(-1)
    return torch.where(word >= 2**31, word - 2**32, word).to(torch.int32)
