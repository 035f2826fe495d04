"""Tiny checkpoints in the forms that quantised models arrive in, each beside the same weights unquantised."""

import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

FP8 = torch.float8_e4m3fn
AWQ_PACK_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)

Parts = Mapping[str, torch.Tensor]
Quantise = Callable[[torch.Tensor], tuple[Parts, torch.Tensor]]  # a weight to its parts by leaf, and what they stand for


def quantised(
    source: Path, folder: Path, quantise: Quantise, config: dict[str, Any] | None, *, experts: Quantise | None = None
) -> tuple[Path, Path]:
    """Write the layers' matrices of `source` through `quantise`; return that folder and one of what they stand for.

    `config` is the quantization_config, None for a checkpoint that has none. Matrices of fused experts go through `experts`,
    or the same, one by one, and their parts are stacked under the name of the parameter and what follows "weight" in the leaf.
    """
    dense, packed = folder / "dense", folder / "packed"
    shutil.copytree(source, dense)
    shutil.copytree(source, packed)
    tensors = load_file(source / "model.safetensors")
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if ".layers." in name and tensor.ndim == 2:
            parts, tensors[name] = quantise(tensor.float())
            stored |= {f"{name.removesuffix('weight')}{leaf}": part.contiguous() for leaf, part in parts.items()}
        elif ".layers." in name and tensor.ndim == 3:
            made = [(experts or quantise)(matrix.float()) for matrix in tensor]
            tensors[name] = torch.stack([weight for _, weight in made])
            for leaf in made[0][0]:
                stored[f"{name}{leaf.removeprefix('weight')}"] = torch.stack([parts[leaf] for parts, _ in made])
        else:
            stored[name] = tensor
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, dense / "model.safetensors")
    save_file(stored, packed / "model.safetensors")
    rewrite_config(packed, {} if config is None else {"quantization_config": config})
    return packed, dense


def rewrite_config(folder: Path, changes: dict[str, Any]) -> None:
    described = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(described))


def rewrite_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def compressed(**weights: Any) -> dict[str, Any]:
    """A quantization_config of compressed-tensors with one group of all linear layers."""
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}
    return {"quant_method": "compressed-tensors", "config_groups": groups, "ignore": ["lm_head"]}


def block_fp8(
    weight: torch.Tensor,
    sides: tuple[int, int] = (48, 48),
    *,
    leaf: str = "weight_scale_inv",
    dtype: torch.dtype = torch.float32,
) -> tuple[Parts, torch.Tensor]:
    """A scale for each block, those at the edges smaller; whole powers of two if the scales' `dtype` has no others."""
    high, wide = sides
    rows, columns = weight.shape
    scale = torch.empty(-(-rows // high), -(-columns // wide), dtype=torch.float8_e8m0fnu if dtype == torch.uint8 else dtype)
    values, made = torch.empty(weight.shape, dtype=FP8), torch.empty_like(weight)
    for row in range(len(scale)):
        for column in range(scale.shape[1]):
            place = slice(row * high, (row + 1) * high), slice(column * wide, (column + 1) * wide)
            block = weight[place] * (1 + 7 * ((row + column) % 2))  # so that neighbours have scales of their own
            scale[row, column] = (
                (block.abs().max() / 200).log2().ceil().exp2() if dtype.itemsize == 1 else block.abs().max() / 400
            )
            values[place] = (block / scale[row, column].float()).to(FP8)
            made[place] = values[place].float() * scale[row, column].float()
    return {"weight": values, leaf: scale.view(torch.uint8) if dtype == torch.uint8 else scale}, made


def tensor_fp8(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    """One scale for all."""
    scale = weight.abs().max() / 448
    values = (weight / scale).to(FP8)
    return {"weight": values, "weight_scale": scale, "input_scale": torch.ones(())}, values.float() * scale


def column_fp8(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    """One scale per column: the outputs of experts that are stored as `[in, out]`."""
    scale = weight.abs().amax(dim=0, keepdim=True) / 448
    values = (weight / scale).to(FP8)
    return {"weight": values, "weight_scale": scale}, values.float() * scale


def row_fp8(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    """One scale per row."""
    scale = weight.abs().amax(dim=1, keepdim=True) / 448
    values = (weight / scale).to(FP8)
    return {"weight": values, "weight_scale": scale}, values.float() * scale


def gptq(
    weight: torch.Tensor, *, act_order: bool = False, zero_shift: int = 1, bits: int = 4, width: int = 32
) -> tuple[Parts, torch.Tensor]:
    """Words of values of `bits` along the columns; with `act_order` the columns of a group lie anywhere."""
    rows, columns = weight.shape
    groups = torch.arange(columns) // width
    if act_order:
        groups = groups[torch.randperm(columns, generator=torch.Generator().manual_seed(0))]
    quants, zeros, scales = _rounded(weight, groups, bits)
    each = 32 // bits
    parts = {
        "qweight": _words(quants.t().reshape(columns // each, each, rows).transpose(1, 2)),
        "qzeros": _words((zeros - zero_shift).t().reshape(-1, rows // each, each)),
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


def int8(weight: torch.Tensor, width: int = 0, *, symmetric: bool = True) -> tuple[Parts, torch.Tensor]:
    """compressed-tensors' int-quantized: a byte each, in groups of `width` columns or whole rows."""
    quants, zeros, scales, groups = _around_zero(weight, width, 8)
    parts = {"weight": quants.to(torch.int8), "weight_scale": scales}
    if symmetric:
        return parts, quants * scales[:, groups]
    return parts | {"weight_zero_point": zeros.to(torch.int8)}, (quants - zeros[:, groups]) * scales[:, groups]


def packed_int(
    weight: torch.Tensor, bits: int = 4, width: int = 0, *, symmetric: bool = True, indexed: bool = False
) -> tuple[Parts, torch.Tensor]:
    """compressed-tensors' pack-quantized; with `indexed` the columns of a group lie anywhere."""
    rows, columns = weight.shape
    quants, zeros, scales, groups = _around_zero(weight, width, bits)
    if indexed:
        groups = groups[torch.randperm(columns, generator=torch.Generator().manual_seed(0))]
    half, each = 1 << (bits - 1), 32 // bits
    parts = {
        "weight_packed": _words((quants + half).reshape(rows, -1, each)),
        "weight_scale": scales.bfloat16(),
        "weight_shape": torch.tensor([rows, columns]),
    }
    scales = scales.bfloat16().float()
    if indexed:
        parts["weight_g_idx"] = groups.int()
    if symmetric:
        return parts, quants * scales[:, groups]
    parts["weight_zero_point"] = _words((zeros + half).t().reshape(zeros.shape[1], -1, each)).t()
    return parts, (quants - zeros[:, groups]) * scales[:, groups]


def nvfp4(weight: torch.Tensor, *, modelopt: bool = False) -> tuple[Parts, torch.Tensor]:
    """Pairs of 4-bit floats, a scale for each 16 of them and one for all, by which compressed-tensors divides."""
    rows = len(weight)
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    overall = torch.tensor(0.002 if modelopt else 500.0)
    largest = weight.view(rows, -1, 16).abs().amax(-1) / 6
    scale = (largest / overall if modelopt else largest * overall).to(FP8)
    spread = (scale.float() * overall if modelopt else scale.float() / overall).repeat_interleave(16, 1)
    codes = (weight.abs() / spread).unsqueeze(-1).sub(table).abs().argmin(-1)
    nibbles = (codes + 8 * (weight < 0)).to(torch.uint8).view(rows, -1, 2)
    made = table[codes] * weight.sign() * spread
    names = ("weight", "weight_scale_2") if modelopt else ("weight_packed", "weight_global_scale")
    return {names[0]: nibbles[..., 0] | (nibbles[..., 1] << 4), "weight_scale": scale, names[1]: overall}, made


def _around_zero(weight: torch.Tensor, width: int, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values `[rows, columns]` from -2**(bits-1) on, zeros and scales `[rows, groups]` and the group of each column."""
    groups = torch.arange(weight.shape[1]) // (width or weight.shape[1])
    half = 1 << (bits - 1)
    scales = torch.stack([weight[:, groups == group].abs().amax(1) / half for group in range(int(groups[-1]) + 1)], 1)
    zeros = (torch.arange(scales.numel()).view(scales.shape) % 3 - 1).float()
    return (weight / scales[:, groups]).round().clamp(-half, half - 1), zeros, scales, groups


def _rounded(weight: torch.Tensor, groups: torch.Tensor, bits: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values `[rows, columns]`, zeros and scales `[rows, groups]`, all of them such as fit their places."""
    num_groups, most = int(groups.max()) + 1, (1 << bits) - 1
    low = torch.stack([weight[:, groups == group].amin(1) for group in range(num_groups)], 1).clamp(max=0)
    high = torch.stack([weight[:, groups == group].amax(1) for group in range(num_groups)], 1).clamp(min=0)
    scales = ((high - low) / most).half().float()
    zeros = (-low / scales).round().clamp(1, most)
    return (weight / scales[:, groups] + zeros[:, groups]).round().clamp(0, most), zeros, scales


def _words(values: torch.Tensor) -> torch.Tensor:
    """Pack the last dimension, as many values as an int32 has room for."""
    each = values.shape[-1]
    shifted = values.to(torch.int64) << (torch.arange(each) * (32 // each))
    word = shifted.sum(-1)
    return torch.where(word >= 2**31, word - 2**32, word).to(torch.int32)


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
FP8_BLOCKS = {"quant_method": "fp8", "weight_block_size": [48, 48]}
PER_ROW = compressed(type="float", num_bits=8, strategy="channel")
FORMS = {
    "fp8 blocks": (block_fp8, FP8_BLOCKS),
    "fp8 whole": (tensor_fp8, {"quant_method": "fp8", "weight_block_size": None}),
    "fp8 rows": (row_fp8, {"quant_method": "compressed-tensors", "format": "float-quantized"}),
    "gptq": (gptq, GPTQ | {"desc_act": False}),
    "gptq act order": (partial(gptq, act_order=True), GPTQ | {"desc_act": True}),
    "gptq v2": (partial(gptq, zero_shift=0), GPTQ | {"checkpoint_format": "gptq_v2"}),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}),
}
E8M0 = torch.float8_e8m0fnu
MX = {"type": "float", "num_bits": 8, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}
MORE_FORMS = FORMS | {
    "fp8 blocks, wide": (partial(block_fp8, sides=(128, 40)), FP8_BLOCKS | {"weight_block_size": [128, 40]}),
    "fp8 blocks, tall": (partial(block_fp8, sides=(7, 500)), FP8_BLOCKS | {"weight_block_size": [7, 500]}),
    "fp8 blocks, bfloat16 scales": (partial(block_fp8, dtype=torch.bfloat16), FP8_BLOCKS),
    "fp8 blocks, e8m0 scales": (partial(block_fp8, dtype=E8M0), FP8_BLOCKS | {"scale_fmt": "ue8m0"}),
    "fp8 blocks, e8m0 scales as bytes": (partial(block_fp8, dtype=torch.uint8), FP8_BLOCKS | {"scale_fmt": "ue8m0"}),
    "fp8 blocks called scale": (partial(block_fp8, leaf="scale"), FP8_BLOCKS),
    "fp8 blocks called qscale_weight": (partial(block_fp8, leaf="qscale_weight"), FP8_BLOCKS),
    "fp8 whole of modelopt": (tensor_fp8, {"quant_method": "modelopt", "quant_algo": "FP8"}),
    "fp8 rows of fbgemm": (row_fp8, {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}),
    "fp8 rows without a configuration": (row_fp8, None),
    "compressed blocks": (
        partial(block_fp8, leaf="weight_scale"),
        compressed(type="float", strategy="block", block_structure=[48, 48]),
    ),
    "compressed blocks as text": (
        partial(block_fp8, leaf="weight_scale"),
        compressed(type="float", strategy="block", block_structure="48x48"),
    ),
    "compressed mxfp8": (partial(block_fp8, sides=(1, 32), leaf="weight_scale", dtype=torch.uint8), compressed(**MX)),
    "compressed int8 rows": (int8, compressed(type="int", num_bits=8, strategy="channel")),
    "compressed int8 groups, zeros": (
        partial(int8, width=32, symmetric=False),
        compressed(type="int", num_bits=8, strategy="group", group_size=32, symmetric=False),
    ),
    "compressed int4 groups": (partial(packed_int, width=32), compressed(num_bits=4, strategy="group", group_size=32)),
    "compressed int4 rows": (packed_int, compressed(num_bits=4, strategy="channel")),
    "compressed int4 groups, zeros": (
        partial(packed_int, width=32, symmetric=False),
        compressed(num_bits=4, group_size=32, symmetric=False),
    ),
    "compressed int4 groups in any order, zeros": (
        partial(packed_int, width=32, symmetric=False, indexed=True),
        compressed(num_bits=4, group_size=32, symmetric=False, actorder="group"),
    ),
    "compressed int8 packed": (partial(packed_int, bits=8, width=32), compressed(num_bits=8, group_size=32)),
    "compressed int2 packed": (partial(packed_int, bits=2, width=32), compressed(num_bits=2, group_size=32)),
    "compressed nvfp4": (nvfp4, compressed(type="float", num_bits=4, strategy="tensor_group", group_size=16)),
    "nvfp4 of modelopt": (partial(nvfp4, modelopt=True), {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
    "gptq 8 bits": (partial(gptq, bits=8), GPTQ | {"bits": 8}),
    "gptq 2 bits": (partial(gptq, bits=2), GPTQ | {"bits": 2}),
    "gptq in rows": (partial(gptq, width=1000), GPTQ | {"group_size": -1}),
}
