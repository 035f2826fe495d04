"""What a configuration says about quantised weights, in each of the dialects that layermesh reads."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from layermesh.shared.errors import CheckpointError, UnsupportedModelError

Block = tuple[int, int]  # rows and columns under one scale
Number = Literal["float", "int"]

_READABLE: Final = (
    "FP8 (fp8, mxfp8, fbgemm_fp8, modelopt), compressed-tensors (float-quantized, int-quantized, pack-quantized in 2, 4 or 8 "
    "bits, nvfp4-pack-quantized), NVFP4 of modelopt, MXFP4 of experts, GPTQ in 2, 4 or 8 bits, and 4-bit AWQ (gemm)"
)
_WORD_BITS: Final = (2, 4, 8)  # widths of which an int32 has a whole number
_DEFAULT_GROUP: Final = 128  # group_size of GPTQ and AWQ where a configuration omits it, as in transformers
_GPTQ_ZERO_SHIFTS: Final = {"gptq": 1, "gptq_v2": 0}
_COMPRESSED_FORMATS: Final = frozenset(
    {
        "dense", "float-quantized", "int-quantized", "mixed-precision", "mxfp8-quantized", "naive-quantized",
        "nvfp4-pack-quantized", "pack-quantized",
    }
)  # fmt: skip
_MODELOPT_ALGORITHMS: Final = frozenset({"FP8", "FP8_PER_CHANNEL_PER_TOKEN", "NVFP4", "MIXED_PRECISION"})


@dataclass(frozen=True, slots=True)
class WeightGroup:
    """Numbers of `bits` under scales; `block` is what one scale covers, None for a scale per tensor, row or expert.

    `is_ordered` is False where a stored index assigns columns to groups.
    """

    number: Number
    bits: int
    block: Block | None = None
    is_symmetric: bool = True
    is_ordered: bool = True


@dataclass(frozen=True, slots=True)
class QuantScheme:
    """The quantisation that a configuration states: `method`, and the `groups` of weights that it distinguishes.

    `zero_shift` is what GPTQ's first format subtracts from the zeros that it stores.
    """

    method: str = ""
    groups: tuple[WeightGroup, ...] = ()
    zero_shift: int = 0

    @classmethod
    def parse(cls, config: Mapping[str, Any], where: str) -> "QuantScheme":
        """Read a `quantization_config` that stands at `where`.

        Raises UnsupportedModelError for a kind that is not read, CheckpointError for settings that make no sense.
        """
        method = str(config.get("quant_method") or ("modelopt" if "quant_algo" in config else None))
        reader = _READERS.get(method)
        if reader is None:
            raise _unreadable(where, _kind(method, config))
        return reader(_Dialect(method, config, where))

    def groups_of(self, number: Number) -> tuple[WeightGroup, ...]:
        """Return the groups whose weights are stored as `number`."""
        return tuple(group for group in self.groups if group.number == number)


@dataclass(frozen=True, slots=True)
class _Dialect:
    """A configuration, its `quant_method`, and where it stands."""

    method: str
    config: Mapping[str, Any]
    where: str

    def refuse(self, detail: str = "") -> UnsupportedModelError:
        return _unreadable(self.where, f"{_kind(self.method, self.config)}{detail}")

    def block(self, name: str, value: Any) -> Block | None:
        """Return a block's sides, given as a list or as "128x128"; raises CheckpointError for anything else but None."""
        sides = value.split("x") if isinstance(value, str) else value
        if sides is None:
            return None
        if isinstance(sides, list | tuple) and len(sides) == 2 and all(str(side).isdecimal() and int(side) for side in sides):
            return int(sides[0]), int(sides[1])
        raise CheckpointError(f"{self.where} has {name} = {ascii(value)[:60]}, which are no two sides of a block. Correct it.")

    def group_size(self, value: Any) -> int:
        """Return a group's width, -1 for whole rows; raises CheckpointError for what is none."""
        if type(value) is int and (value > 0 or value == -1):
            return value
        raise CheckpointError(f"{self.where} has group_size = {ascii(value)[:60]}, which is no number of columns. Correct it.")


def _fp8(dialect: _Dialect) -> QuantScheme:
    block = dialect.block("weight_block_size", dialect.config.get("weight_block_size"))
    return QuantScheme(dialect.method, (WeightGroup("float", 8, block),))


def _mxfp4(dialect: _Dialect) -> QuantScheme:
    return QuantScheme(dialect.method)


def _modelopt(dialect: _Dialect) -> QuantScheme:
    algorithm = str(dialect.config.get("quant_algo"))
    if algorithm not in _MODELOPT_ALGORITHMS:
        raise dialect.refuse(f", quant_algo {ascii(algorithm)[:40]}")
    return QuantScheme(dialect.method, (WeightGroup("float", 8), WeightGroup("float", 4)))


def _gptq(dialect: _Dialect) -> QuantScheme:
    bits, layout = dialect.config.get("bits"), str(dialect.config.get("checkpoint_format") or "gptq")
    if type(bits) is not int or bits not in _WORD_BITS or layout not in _GPTQ_ZERO_SHIFTS:
        raise dialect.refuse(f", checkpoint_format {ascii(layout)[:40]}")
    if dialect.config.get("dynamic"):
        raise dialect.refuse(", dynamic: settings of single modules")
    width = dialect.group_size(dialect.config.get("group_size", _DEFAULT_GROUP))
    group = WeightGroup("int", bits, (1, width), is_ordered=not dialect.config.get("desc_act"))
    return QuantScheme("gptq", (group,), _GPTQ_ZERO_SHIFTS[layout])


def _awq(dialect: _Dialect) -> QuantScheme:
    version = str(dialect.config.get("version", "gemm")).lower()
    if dialect.config.get("bits") != 4 or version != "gemm":
        raise dialect.refuse(f", version {version[:40]}")
    width = dialect.group_size(dialect.config.get("group_size", _DEFAULT_GROUP))
    return QuantScheme("awq", (WeightGroup("int", 4, (1, width)),))


def _compressed_tensors(dialect: _Dialect) -> QuantScheme:
    config = dialect.config
    sparsity = config.get("sparsity_config")
    if sparsity and (not isinstance(sparsity, dict) or sparsity.get("format", "dense") != "dense"):
        raise dialect.refuse(f", sparsity_config {ascii(sparsity)[:60]}")
    if config.get("transform_config"):
        raise dialect.refuse(", transform_config: inputs are rotated as well")
    groups = config.get("config_groups") or {}
    if not isinstance(groups, dict) or not all(isinstance(group, dict) for group in groups.values()):
        raise CheckpointError(f"{dialect.where} has config_groups that are no table of groups. Fetch config.json again.")
    for layout in (config.get("format"), *(group.get("format") for group in groups.values())):
        if layout is not None and str(layout) not in _COMPRESSED_FORMATS:
            raise dialect.refuse(f", format {ascii(layout)[:40]}")
    found = [_compressed_group(dialect, group["weights"]) for group in groups.values() if group.get("weights") is not None]
    return QuantScheme(dialect.method, tuple(dict.fromkeys(found)))


def _compressed_group(dialect: _Dialect, weights: Any) -> WeightGroup:
    """Read the `weights` of one of `config_groups`, with the defaults of compressed-tensors."""
    if not isinstance(weights, dict):
        raise CheckpointError(f"{dialect.where} has weights of config_groups that are no table. Fetch config.json again.")
    number, bits = str(weights.get("type", "int")).lower(), weights.get("num_bits", 8)
    if number not in ("float", "int") or type(bits) is not int or not 1 <= bits <= 8:
        raise dialect.refuse(f", {ascii(bits)[:20]}-bit {ascii(number)[:20]}")
    return WeightGroup(
        "float" if number == "float" else "int",
        bits,
        _compressed_block(dialect, weights),
        is_symmetric=bool(weights.get("symmetric", True)),
        is_ordered=str(weights.get("actorder")).lower() not in ("group", "dynamic", "true"),
    )


def _compressed_block(dialect: _Dialect, weights: Mapping[str, Any]) -> Block | None:
    strategy = weights.get("strategy")
    width = weights.get("group_size")
    if strategy is None:  # compressed-tensors then infers it from group_size
        strategy = "tensor" if width is None else "channel" if width == -1 else "group"
    if strategy in ("tensor", "channel"):
        return None
    if strategy in ("group", "tensor_group"):
        return 1, dialect.group_size(width)
    block = dialect.block("block_structure", weights.get("block_structure"))
    if strategy != "block" or block is None:
        raise dialect.refuse(f", strategy {ascii(strategy)[:40]} without block_structure")
    return block


_READERS: Final[Mapping[str, Callable[[_Dialect], QuantScheme]]] = {
    "awq": _awq,
    "compressed-tensors": _compressed_tensors,
    "fbgemm_fp8": _fp8,
    "fp8": _fp8,
    "gptq": _gptq,
    "modelopt": _modelopt,
    "mxfp4": _mxfp4,
    "mxfp8": _fp8,
}


def _kind(method: str, config: Mapping[str, Any]) -> str:
    return f"{method[:40]}, {ascii(config['bits'])[:20]} bits" if "bits" in config else method[:40]


def _unreadable(where: str, kind: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{where} describes weights quantised ({kind}) in a way that layermesh cannot read; it reads {_READABLE}. Use another "
        "version, the unquantised checkpoint, or a GGUF file."
    )
