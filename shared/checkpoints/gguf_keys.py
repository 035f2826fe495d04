"""The metadata of a GGUF file's own architecture, with an account of which keys were read."""

import math
from typing import Any, Final

from layermesh.shared.checkpoints.gguf_header import GGUFHeader
from layermesh.shared.errors import CheckpointError, UnsupportedModelError

# Values with which a key changes nothing: what the model does where the key is absent.
_NEUTRAL: Final[dict[str, tuple[object, ...]]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.key_length_swa": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.output_scale": (0, 1),
    "attention.shared_kv_layers": (0,),
    "attention.sliding_window": (0,),
    "attention.temperature_length": (0,),
    "attention.temperature_scale": (0,),
    "attention.value_length_swa": (0,),
    "attention.value_scale": (0, 1),
    "attn_logit_softcapping": (0,),
    "embedding_length_per_layer_input": (0,),
    "embedding_scale": (0, 1),
    "expert_count": (0,),
    "expert_feed_forward_length": (0,),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_shared_count": (0,),
    "expert_shared_feed_forward_length": (0,),
    "expert_used_count": (0,),
    "expert_weights_norm": (False,),
    "expert_weights_scale": (0, 1),
    "final_logit_softcapping": (0,),
    "interleave_moe_layer_step": (0, 1),
    "leading_dense_block_count": (0,),
    "logit_scale": (0, 1),
    "moe_every_n_layers": (0, 1),
    "n_deepstack_layers": (0,),
    "nextn_predict_layers": (0,),
    "pooling_type": (0,),
    "residual_scale": (0, 1),
    "rope.scaling.finetuned": (True, False),  # llama.cpp stores it and uses it for nothing
    "router_logit_softcapping": (0,),
    "tensor_data_layout": ("Meta AI original pth",),  # the only one there is of such models
}
_OTHER_SENSES: Final = ("vision.", "audio.", "mm.")  # of sub-models that text never reaches
_FIX: Final = "Use this model's safetensors, or another conversion of it."


class FamilyKeys:
    """The keys `<architecture>.*` of a GGUF file, each marked as it is read.

    Whoever builds a model of them calls `check_all_read` at the end: a key that nothing read is refused, unless its value
    is known to change nothing.
    """

    def __init__(self, header: GGUFHeader) -> None:
        self.header = header
        prefix = f"{header.architecture}."
        self._values = {key[len(prefix) :]: value for key, value in header.metadata.items() if key.startswith(prefix)}
        self._unread = set(self._values)
        self.read_tensors: set[str] = set()  # those that became configuration

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of `key`, or `default` where the file has none.

        Raises UnsupportedModelError for a value too long to keep.
        """
        if key not in self._values:
            return default
        if self._values[key] is None:
            raise self.refusal(key)
        self._unread.discard(key)
        return self._values[key]

    def require(self, key: str) -> Any:
        """Return the value of `key`; raises CheckpointError where the file has none."""
        if key not in self._values:
            raise CheckpointError(
                f"{self.header.path}: its metadata make no {self.header.architecture} model: the key "
                f"'{self.header.architecture}.{key}' is absent. Fetch the file again, or look for another conversion."
            )
        return self.get(key)

    def number(self, key: str, default: Any = None) -> Any:
        """Return the number of `key`, or the one that all elements of its list are, or `default`.

        Raises UnsupportedModelError for a list of several numbers, CheckpointError for what is no number.
        """
        value = self.get(key, default)
        if isinstance(value, list) and value and all(element == value[0] for element in value):
            value = value[0]
        if isinstance(value, list):
            raise self.refusal(key, "differs from layer to layer, which layermesh does not apply")
        if value is not None and (not isinstance(value, int | float) or not math.isfinite(value)):
            raise self.broken(key, "a finite number")
        return value

    def layers(self, key: str, num_layers: int) -> list[Any] | None:
        """Return the list of `key`, one element for each of `num_layers`, or None where it is absent or a single value."""
        value = self._values.get(key)
        if not isinstance(value, list):
            return None
        if len(value) < num_layers:
            raise self.broken(key, f"a list of {num_layers} elements")
        self._unread.discard(key)
        return value[:num_layers]

    def expect(self, key: str, *allowed: object, reason: str = "differs from what the model computes") -> None:
        """Read `key`; raises UnsupportedModelError where it is stated and near none of `allowed`."""
        value = self.get(key)
        if value is not None and not any(_is_same(value, other) for other in allowed):
            raise self.refusal(key, f"{reason} ({', '.join(map(str, allowed))})")

    def has_tensor(self, name: str) -> bool:
        """Return whether the file has a tensor `name`, in any layer if `name` is of a layer."""
        return name in self.header.tensors or f"blk.0.{name}" in self.header.tensors

    def refusal(self, key: str, reason: str = "is one that layermesh does not apply to such a model") -> UnsupportedModelError:
        """Return the error for `key` and its value, which `reason` completes as a verb."""
        value = self._values.get(key, "absent")
        shown = "too long" if value is None else ascii(value)[:60]
        full = f"{self.header.architecture}.{key}"
        return UnsupportedModelError(f"cannot run {self.header.path}: its key '{full}' = {shown} {reason}. {_FIX}")

    def broken(self, key: str, wanted: str) -> CheckpointError:
        """Return the error for a value of `key` that is not `wanted`."""
        return CheckpointError(
            f"{self.header.path} is damaged: its key '{self.header.architecture}.{key}' is not {wanted}. Fetch it again."
        )

    def check_all_read(self) -> None:
        """Raise UnsupportedModelError for a key that nothing read and whose value may change answers."""
        for key in sorted(self._unread):
            neutral = any(_is_same(self._values[key], value) for value in _NEUTRAL.get(key, ()))
            if not neutral and not key.startswith(_OTHER_SENSES):
                raise self.refusal(key)


def _is_same(value: object, other: object) -> bool:
    if isinstance(value, list):
        return bool(value) and all(_is_same(element, other) for element in value)
    if isinstance(value, bool) or isinstance(other, bool) or not isinstance(value, int | float):
        return value == other and isinstance(value, bool) == isinstance(other, bool)
    return isinstance(other, int | float) and math.isclose(value, other, rel_tol=1e-6)
