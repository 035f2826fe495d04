"""Which stored tensors together are a quantised weight, and what undoes the quantisation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import torch

from layermesh.shared.checkpoints.tensors import StoredTensor
from layermesh.shared.errors import CheckpointError, ModelError, UnsupportedModelError
from layermesh.shared.model.packed_words import (
    WORD_BITS,
    by_index,
    check_stored_shape,
    unpack_awq,
    unpack_compressed,
    unpack_fp4,
    unpack_gptq,
)
from layermesh.shared.model.quant_config import QuantScheme, WeightGroup
from layermesh.shared.model.scaled_values import ScaleGrid, apply_scale, fit_grid

Unpack = Callable[[Sequence[torch.Tensor]], torch.Tensor]  # decoded parts, float32, to weights, float32 [rows, columns]
Tensors = Mapping[str, StoredTensor]

FP8_VALUES: Final = ("F8_E4M3", "F8_E5M2")
FLOATS: Final = ("F64", "F32", "F16", "BF16")
_POWERS: Final = ("F8_E8M0", "U8")  # exponents of two, under either name
_ZEROS: Final = ("I8", "I32", "I64", *FLOATS)
_NVFP4_GROUP: Final = 16
_ONLY_FP8: Final = (".scale", ".qscale_weight")  # names that mean this under quant_method fp8, as in transformers


@dataclass(frozen=True, slots=True)
class QuantisedTensor:
    """A weight as the model has it (`weight`, of which only name and shape mean something), and what it is unpacked from."""

    weight: StoredTensor
    parts: tuple[StoredTensor, ...]
    unpack: Unpack


def find_quantised(
    tensors: Tensors, scheme: QuantScheme, matters: Callable[[str], bool] = lambda _name: True
) -> dict[str, QuantisedTensor]:
    """Return the quantised weights among `tensors`, by the name that the weight would have unquantised.

    Weights without the parts that they need are left out: `check_parts` and `check_numbers` name those that the model computes
    with. Raises CheckpointError for parts that do not fit together and UnsupportedModelError for parts of an unknown kind,
    unless the weight does not matter.
    """
    found: dict[str, QuantisedTensor] = {}
    for name, tensor in tensors.items():
        try:
            quantised = _find(name, tensor, tensors, scheme)
        except ModelError:
            if matters(name):
                raise
        else:
            if quantised is not None:
                _check_single(quantised, name, tensors)
                found[quantised.weight.name] = quantised
    return found


def _check_single(quantised: QuantisedTensor, name: str, tensors: Tensors) -> None:
    weight = quantised.weight.name
    if weight != name and weight in tensors:
        raise CheckpointError(f"{tensors[name].path} has {weight} twice: as it is, and quantised as {name}. Fetch it again.")


def _find(name: str, tensor: StoredTensor, tensors: Tensors, scheme: QuantScheme) -> QuantisedTensor | None:
    if tensor.encoding in FP8_VALUES:
        return _find_fp8(tensor, tensors, scheme)
    if name.endswith(".qweight") and scheme.method in ("gptq", "awq"):
        return _find_words(name.removesuffix(".qweight"), tensors, scheme)
    if name.endswith(".weight_packed") and scheme.method == "compressed-tensors":
        finder = _find_fp4 if tensor.encoding == "U8" else _find_packed
        return finder(name.removesuffix(".weight_packed"), tensor, tensors, scheme)
    if name.endswith(".weight") and tensor.encoding == "U8" and scheme.method in ("", "modelopt"):
        return _find_fp4(name.removesuffix(".weight"), tensor, tensors, scheme)
    if name.endswith(".weight") and tensor.encoding == "I8" and scheme.method == "compressed-tensors":
        return _find_int8(name.removesuffix(".weight"), tensor, tensors, scheme)
    return None


def _find_fp8(values: StoredTensor, tensors: Tensors, scheme: QuantScheme) -> QuantisedTensor | None:
    scales = [tensors[name] for name in _scale_names(values.name, scheme) if name in tensors]
    if not scales:
        return None
    if len(scales) > 1:
        raise UnsupportedModelError(
            f"{values.path} has two scales for {values.name}: {scales[0].name} and {scales[1].name}, and nothing says which "
            "counts. Use another version of the model."
        )
    scale = _as_scale(scales[0], _POWERS)
    blocks = [group.block for group in scheme.groups_of("float") if group.bits == 8]
    grid = _grid(values, scale, blocks or [None], by_output=scheme.method == "fbgemm_fp8")
    return QuantisedTensor(values, (values, scale), lambda parts: apply_scale(parts[0], parts[1], grid))


def _scale_names(name: str, scheme: QuantScheme) -> Iterator[str]:
    """The names under which producers store what FP8 values are multiplied with."""
    stem = name.removesuffix(".weight")
    link = "." if stem != name else "_"
    yield from (f"{stem}{link}weight_scale_inv", f"{stem}{link}weight_scale")
    if link == "_":
        yield from (f"{stem}_scale_inv", f"{stem}_scale")
    elif scheme.method == "fp8":
        yield from (f"{stem}{leaf}" for leaf in _ONLY_FP8)


def _as_scale(stored: StoredTensor, powers: Sequence[str] = ()) -> StoredTensor:
    """Return a scale as it is to be decoded; raises UnsupportedModelError where it is neither a float nor one of `powers`."""
    if stored.encoding in FLOATS:
        return stored
    if stored.encoding in powers:
        return replace(stored, encoding="F8_E8M0")
    raise UnsupportedModelError(f"{stored.path} stores the scale {stored.name} as {stored.encoding}. Use another version.")


def _grid(
    values: StoredTensor, scale: StoredTensor, blocks: Sequence[tuple[int, int] | None], *, by_output: bool = False
) -> ScaleGrid:
    """Return how `scale` lies over `values` by the one of `blocks` that fits; raises CheckpointError where that is not one."""
    grids = {fit_grid(values.shape, scale.shape, block, by_output=by_output) for block in blocks} - {None}
    if len(grids) == 1 and (grid := grids.pop()) is not None:
        return grid
    stated = ", ".join("no blocks" if block is None else f"blocks of {list(block)}" for block in dict.fromkeys(blocks))
    raise CheckpointError(
        f"{scale.path}: {scale.name} has the shape {list(scale.shape)}, which "
        f"{'fits in several ways' if grids else 'does not fit'} {values.name} {list(values.shape)} in {stated}, as config.json "
        "has it. Check weight_block_size or config_groups there, or fetch the model again."
    )


def _find_int8(path: str, values: StoredTensor, tensors: Tensors, scheme: QuantScheme) -> QuantisedTensor | None:
    """compressed-tensors' int-quantized: a byte for each weight, and zeros where the groups are asymmetric."""
    groups = scheme.groups_of("int")
    scale = tensors.get(f"{path}.weight_scale")
    if scale is None or not groups:
        return None
    scale = _as_scale(scale)
    grid = _grid(values, scale, [group.block for group in groups])
    zero = _zero(path, tensors, groups)
    if zero is not None and zero.shape != scale.shape:
        raise _misfit(path, values)
    parts = (values, scale) if zero is None else (values, scale, zero)
    return QuantisedTensor(values, parts, lambda given: apply_scale(given[0], given[1], grid, *given[2:]))


def _zero(path: str, tensors: Tensors, groups: Sequence[WeightGroup]) -> StoredTensor | None:
    zero = tensors.get(f"{path}.weight_zero_point")
    if zero is None and not any(group.is_symmetric for group in groups):
        raise CheckpointError(f"{path} lacks weight_zero_point, which asymmetric weights need. Fetch the model again.")
    if zero is not None and zero.encoding not in _ZEROS:
        raise UnsupportedModelError(f"{zero.path} stores {zero.name} as {zero.encoding}. Use another version.")
    return zero


def _find_packed(path: str, words: StoredTensor, tensors: Tensors, scheme: QuantScheme) -> QuantisedTensor | None:
    """compressed-tensors' pack-quantized: the same numbers in fewer bits, in int32."""
    groups = scheme.groups_of("int")
    scale = tensors.get(f"{path}.weight_scale")
    if scale is None or not groups:
        return None
    scale = _as_scale(scale)
    fitting = [(group, shape) for group in groups if (shape := _packed_shape(words, scale, group)) is not None]
    if len(fitting) != 1 or words.encoding != "I32":
        raise _misfit(path, words)
    group, shape = fitting[0]
    return _packed(path, replace(words, name=f"{path}.weight", shape=shape), words, scale, tensors, group)


def _packed_shape(words: StoredTensor, scale: StoredTensor, group: WeightGroup) -> tuple[int, int] | None:
    """Return the shape of weights whose words and scales these are, None where they do not go together."""
    if WORD_BITS % group.bits or len(words.shape) != 2:
        return None
    rows, columns = words.shape[0], words.shape[1] * WORD_BITS // group.bits
    if group.block is not None and group.block[1] > 0 and len(scale.shape) == 2:
        columns = min(columns, scale.shape[1] * group.block[1])  # the last word may be filled in part
    if -(-columns * group.bits // WORD_BITS) != words.shape[1]:
        return None
    return (rows, columns) if fit_grid((rows, columns), scale.shape, group.block) else None


def _packed(
    path: str, weight: StoredTensor, words: StoredTensor, scale: StoredTensor, tensors: Tensors, group: WeightGroup
) -> QuantisedTensor:
    zero = _zero(path, tensors, [group])
    rows, columns = weight.shape
    index = tensors.get(f"{path}.weight_g_idx")
    if (zero is not None or index is not None) and (len(scale.shape) != 2 or scale.shape[0] != rows):
        raise _misfit(path, words)
    if zero is not None and (zero.encoding, zero.shape) != ("I32", (-(-rows * group.bits // WORD_BITS), scale.shape[-1])):
        raise _misfit(path, words)
    if (index is None and not group.is_ordered) or (index is not None and index.shape != (columns,)):
        raise CheckpointError(
            f"{words.path} has no weight_g_idx that fits {path}, whose columns are in any order. Fetch it again."
        )
    named = {"shape": tensors.get(f"{path}.weight_shape"), "zero": _as_bytes(zero) if zero else None, "index": index}
    leaves = tuple(leaf for leaf, part in named.items() if part is not None)
    parts = (_as_bytes(words), scale, *(part for part in named.values() if part is not None))
    unpack = partial(_unpack_packed, group=group, shape=(rows, columns), leaves=leaves, name=f"{path}.weight_shape")
    return QuantisedTensor(weight, parts, unpack)


def _unpack_packed(
    parts: Sequence[torch.Tensor], group: WeightGroup, shape: tuple[int, int], leaves: Sequence[str], name: str
) -> torch.Tensor:
    words, scale, *others = parts
    named = dict(zip(leaves, others, strict=True))
    if "shape" in named:
        check_stored_shape(named["shape"], shape, name)
    index = named.get("index")
    if index is not None and bool((index < 0).any()):  # compressed-tensors leaves -1 where columns are in order
        index = None
    if index is None:
        grid = fit_grid(shape, tuple(scale.shape), group.block)
        if grid is None:
            raise CheckpointError(f"{name.removesuffix('_shape')} has an index of columns that is not filled. Fetch it again.")
        return unpack_compressed(words, scale, grid, group.bits, shape, named.get("zero"))
    return by_index(words, scale, index, group.bits, named.get("zero"))


def _find_fp4(path: str, values: StoredTensor, tensors: Tensors, scheme: QuantScheme) -> QuantisedTensor | None:
    """NVFP4: two weights in a byte, a scale for each 16 of them, and one over all, which compressed-tensors divides by."""
    divides = scheme.method == "compressed-tensors"
    scale = tensors.get(f"{path}.weight_scale")
    overall = tensors.get(f"{path}.weight_global_scale" if divides else f"{path}.weight_scale_2")
    if scale is None or overall is None or scale.encoding != FP8_VALUES[0] or len(values.shape) != 2:
        return None
    if overall.num_elements != 1 or overall.encoding not in FLOATS:
        raise _misfit(path, values)
    weight = replace(values, name=f"{path}.weight", shape=(values.shape[0], 2 * values.shape[1]))
    grid = _grid(weight, scale, [(1, _NVFP4_GROUP)])
    return QuantisedTensor(weight, (values, scale, overall), partial(unpack_fp4, grid=grid, divides=divides))


def _find_words(path: str, tensors: Tensors, scheme: QuantScheme) -> QuantisedTensor:
    words, (group,) = tensors[f"{path}.qweight"], scheme.groups
    try:
        zeros, scales = tensors[f"{path}.qzeros"], tensors[f"{path}.scales"]
    except KeyError as error:
        raise CheckpointError(f"{words.path} lacks {error}, which {path} needs. Fetch the model again.") from error
    order = [tensors[f"{path}.g_idx"]] if scheme.method == "gptq" and f"{path}.g_idx" in tensors else []
    if not group.is_ordered and not order:
        raise CheckpointError(f"{words.path} lacks {path}.g_idx, which desc_act needs. Fetch the model again.")
    each, (high, wide) = WORD_BITS // group.bits, words.shape if len(words.shape) == 2 else (0, 0)
    shape = (wide, high * each) if scheme.method == "gptq" else (wide * each, high)
    weight = replace(words, name=f"{path}.weight", shape=shape)
    num_groups = scales.shape[0] if len(scales.shape) == 2 else 0
    fits = fit_grid(shape, scales.shape[::-1], group.block) and all(index.shape == shape[1:] for index in order)
    if not fits or scales.shape != (num_groups, shape[0]) or zeros.shape != (num_groups, shape[0] // each):
        raise _misfit(path, words)
    if {words.encoding, zeros.encoding} != {"I32"} or scales.encoding not in FLOATS:
        raise UnsupportedModelError(f"{words.path} stores the words of {path} as {words.encoding}. Use another version.")
    width = group.block[1] if group.block else -1
    unpack = (
        partial(unpack_gptq, bits=group.bits, width=width, zero_shift=scheme.zero_shift)
        if scheme.method == "gptq"
        else partial(unpack_awq, width=width)
    )
    return QuantisedTensor(weight, (_as_bytes(words), _as_bytes(zeros), scales, *order), unpack)


def _as_bytes(stored: StoredTensor) -> StoredTensor:
    """Words as bytes, which float32 holds exactly."""
    return replace(stored, encoding="U8", shape=(*stored.shape[:-1], stored.shape[-1] * 4))


def _misfit(path: str, stored: StoredTensor) -> CheckpointError:
    return CheckpointError(
        f"{stored.path}: the parts of {path} do not fit together, or not what config.json says of them. Fetch the model again."
    )
