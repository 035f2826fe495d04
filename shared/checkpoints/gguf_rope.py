"""How a GGUF file says that positions are turned, and the same in transformers' words."""

import math
import struct
from typing import Any, Final

from layermesh.shared.checkpoints.gguf_keys import FamilyKeys
from layermesh.shared.errors import CheckpointError, UnsupportedModelError

FREQUENCIES: Final = "rope_freqs.weight"
LONG: Final = "rope_factors_long.weight"
SHORT: Final = "rope_factors_short.weight"
APPLIED_TENSORS: Final = frozenset({FREQUENCIES, LONG, SHORT})  # what becomes configuration instead of a parameter

_MAX_FACTORS: Final = 4096
_LOW, _HIGH = 1.0, 4.0  # of every Llama 3; the file has only what they make of the frequencies


def read_rope(keys: FamilyKeys, head_dim: int, context: int, *, partial: bool = False) -> dict[str, Any]:
    """Return transformers' `rope_parameters` for heads of `head_dim` values and a trained length of `context` tokens.

    `partial`: whether the model can turn only a part of each head. Raises UnsupportedModelError for what transformers has
    no words for, CheckpointError for impossible values.
    """
    theta = keys.number("rope.freq_base", 10000.0)
    turned = keys.number("rope.dimension_count", head_dim)
    if turned != head_dim and not (partial and 0 < turned < head_dim and turned % 2 == 0):
        raise keys.refusal("rope.dimension_count", f"differs from the {head_dim} that the model turns")
    scaled = _scaling(keys, theta, turned, context)
    rope = {"rope_theta": theta, **scaled}
    return rope | {"partial_rotary_factor": turned / head_dim} if partial else rope


def _scaling(keys: FamilyKeys, theta: float, turned: int, context: int) -> dict[str, Any]:
    kind = keys.get("rope.scaling.type", "linear")  # llama.cpp's default
    factor = 1.0 if kind == "none" and _factor(keys) else _factor(keys)
    original = keys.number("rope.scaling.original_context_length", context)
    magnitude = keys.number("rope.scaling.attn_factor", 1.0)
    for key in ("rope.scaling.yarn_log_multiplier", "rope.scaling.alpha"):
        keys.expect(key, 0.0)
    _check_positive(keys, factor, original, magnitude)
    if kind == "yarn" and factor != 1.0:
        return _yarn(keys, factor, original, magnitude)
    _check_no_yarn(keys)
    if kind not in ("none", "linear", "longrope", "yarn"):
        raise keys.refusal("rope.scaling.type", "is none of none, linear, yarn and longrope")
    if LONG in keys.header.tensors or SHORT in keys.header.tensors:
        return _longrope(keys, turned, factor, original, magnitude)
    if kind == "longrope":
        raise keys.refusal("rope.scaling.type", f"goes with the tensors {SHORT} and {LONG}, which are not there")
    factors = read_factors(keys, FREQUENCIES, turned) if FREQUENCIES in keys.header.tensors else [1.0] * (turned // 2)
    return _by_factors([each * factor for each in factors], theta, context, magnitude)


def _factor(keys: FamilyKeys) -> float:
    """Return how far positions are stretched; a factor of 0 is one that is not set."""
    stated, old = keys.number("rope.scaling.factor", 0.0), keys.number("rope.scale_linear", 0.0)
    if stated and old and not math.isclose(stated, old, rel_tol=1e-6):
        raise keys.refusal("rope.scale_linear", f"contradicts rope.scaling.factor = {stated}")
    return float(stated or old or 1.0)


def _check_positive(keys: FamilyKeys, *values: float) -> None:
    if min(values) <= 0:
        raise CheckpointError(
            f"{keys.header.path} is damaged: one of its keys '{keys.header.architecture}.rope.scaling.*' is not positive. "
            "Fetch it again."
        )


def _yarn(keys: FamilyKeys, factor: float, original: int, magnitude: float) -> dict[str, Any]:
    if APPLIED_TENSORS & keys.header.tensors.keys():
        raise keys.refusal("rope.scaling.type", f"stands beside {sorted(APPLIED_TENSORS & keys.header.tensors.keys())[0]}")
    if keys.number("rope.scaling.yarn_ext_factor", 1.0) not in (1.0, -1.0):  # llama.cpp's -1 is one that is not set
        raise keys.refusal("rope.scaling.yarn_ext_factor", "is not 1, the only one that transformers computes with")
    usual = 0.1 * math.log(factor) + 1.0 if factor > 1.0 else 1.0
    stated = keys.number("rope.scaling.yarn_attn_factor", usual)
    rope = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    rope |= {
        "beta_fast": float(keys.number("rope.scaling.yarn_beta_fast", 32.0)),
        "beta_slow": float(keys.number("rope.scaling.yarn_beta_slow", 1.0)),
    }
    is_usual = math.isclose(stated * magnitude, usual, rel_tol=1e-6)  # what transformers computes where nothing is stated
    return rope if is_usual else rope | {"attention_factor": float(stated * magnitude)}


def _check_no_yarn(keys: FamilyKeys) -> None:
    """Read what says nothing where positions are not scaled by YaRN."""
    keys.expect("rope.scaling.yarn_ext_factor", 0.0, 1.0, -1.0)
    keys.expect("rope.scaling.yarn_attn_factor", 1.0)
    keys.get("rope.scaling.yarn_beta_fast")
    keys.get("rope.scaling.yarn_beta_slow")


def _longrope(keys: FamilyKeys, turned: int, factor: float, original: int, magnitude: float) -> dict[str, Any]:
    if FREQUENCIES in keys.header.tensors:
        raise tensor_refusal(keys, FREQUENCIES, f"stands beside {LONG}")
    if not {LONG, SHORT} <= keys.header.tensors.keys():
        raise tensor_refusal(keys, LONG if LONG in keys.header.tensors else SHORT, "stands alone")
    return {
        "rope_type": "longrope",
        "short_factor": [each * factor for each in read_factors(keys, SHORT, turned)],
        "long_factor": [each * factor for each in read_factors(keys, LONG, turned)],
        "original_max_position_embeddings": original,
        "attention_factor": float(magnitude),
    }


def _by_factors(factors: list[float], theta: float, context: int, magnitude: float) -> dict[str, Any]:
    """Return the parameters that divide each frequency by one of `factors` and multiply attention with `magnitude`."""
    if magnitude == 1.0 and len(set(factors)) <= 1:
        same = factors[0] if factors else 1.0
        return {"rope_type": "default"} if same == 1.0 else {"rope_type": "linear", "factor": same}
    if magnitude == 1.0 and (llama3 := _llama3(factors, theta)) is not None:
        return llama3
    # transformers' longrope divides frequencies by a list; with the same one for short and long it never changes them.
    return {
        "rope_type": "longrope",
        "short_factor": factors,
        "long_factor": factors,
        "original_max_position_embeddings": context,
        "attention_factor": float(magnitude),
    }


def _llama3(factors: list[float], theta: float) -> dict[str, Any] | None:
    """Return the parameters of Llama 3 whose factors are `factors`, None where there are none."""
    lengths = [2 * math.pi * theta ** (index / len(factors)) for index in range(len(factors))]
    largest = max(factors)
    between = [index for index, each in enumerate(factors) if 1.0 < each < largest * (1 - 1e-6)]
    original = 8192
    if between:
        index = max(between, key=lambda index: min(factors[index] - 1.0, largest - factors[index]))
        smooth = (1 / factors[index] - 1 / largest) / (1 - 1 / largest)
        original = round(lengths[index] * (smooth * (_HIGH - _LOW) + _LOW))
    made = [_llama3_factor(length, largest, original) for length in lengths]
    if not all(math.isclose(one, other, rel_tol=1e-5) for one, other in zip(made, factors, strict=True)):
        return None
    rope: dict[str, Any] = {"rope_type": "llama3", "factor": largest, "low_freq_factor": _LOW, "high_freq_factor": _HIGH}
    return rope | {"original_max_position_embeddings": original}


def _llama3_factor(length: float, factor: float, original: int) -> float:
    if length < original / _HIGH:
        return 1.0
    if length > original / _LOW:
        return factor
    smooth = (original / length - _LOW) / (_HIGH - _LOW)
    return 1 / ((1 - smooth) / factor + smooth)


def read_factors(keys: FamilyKeys, name: str, turned: int) -> list[float]:
    """Return what the tensor `name` divides the frequencies of `turned` values by, one for each pair.

    Raises UnsupportedModelError for a tensor of another shape or encoding, CheckpointError for values that divide nothing.
    """
    tensor = keys.header.tensors[name]
    keys.read_tensors.add(name)
    if tensor.encoding != "F32" or not 0 < tensor.num_elements <= _MAX_FACTORS or tensor.num_elements != turned // 2:
        raise tensor_refusal(keys, name, f"is {list(tensor.shape)} of {tensor.encoding}, not [{turned // 2}] of F32")
    with tensor.path.open("rb") as file:
        file.seek(tensor.offset)
        factors = list(struct.unpack(f"<{tensor.num_elements}f", file.read(tensor.num_bytes)))
    if not all(math.isfinite(each) and each > 0 for each in factors):
        raise CheckpointError(f"{keys.header.path} is damaged: {name} has values that divide nothing. Fetch it again.")
    return factors


def check_factors_read(keys: FamilyKeys) -> None:
    """Raise UnsupportedModelError for factors of frequencies that nothing read."""
    for name in sorted(APPLIED_TENSORS & keys.header.tensors.keys() - keys.read_tensors):
        raise tensor_refusal(keys, name, f"scales positions, which layermesh does not do in {keys.header.architecture} models")


def tensor_refusal(keys: FamilyKeys, name: str, reason: str) -> UnsupportedModelError:
    """Return the error for the tensor `name`, which `reason` completes as a verb."""
    return UnsupportedModelError(
        f"cannot run {keys.header.path}: its tensor {name} {reason}. Use this model's safetensors, or another conversion of it."
    )
