"""What the decoders of most GGUF architectures have in common, as values of a transformers configuration."""

from typing import Any, Final

from layermesh.shared.checkpoints.gguf_keys import FamilyKeys
from layermesh.shared.checkpoints.gguf_rope import read_rope
from layermesh.shared.errors import CheckpointError

Values = dict[str, Any]

SOFTMAX, SIGMOID = 1, 2  # as expert_gating_func numbers them
_MAX_LAYERS: Final = 4096  # llama.cpp reads 512
_SPECIAL_TOKENS: Final = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}


def common(keys: FamilyKeys) -> Values:
    """Return what every family has: sizes, special tokens, whether the embedding is also the output projection."""
    keys.get("vocab_size")  # the rows of the embedding say how many there are
    embedding = keys.header.tensors.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError(f"{keys.header.path} lacks the tensor token_embd.weight. Fetch it again.")
    num_layers = keys.require("block_count")
    if not isinstance(num_layers, int) or not 0 < num_layers <= _MAX_LAYERS:
        raise keys.broken("block_count", f"a number of layers up to {_MAX_LAYERS}")
    values = {name: keys.header.metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in _SPECIAL_TOKENS.items()}
    return values | {
        "vocab_size": embedding.shape[0],
        "hidden_size": keys.require("embedding_length"),
        "num_hidden_layers": num_layers,
        "tie_word_embeddings": "output.weight" not in keys.header.tensors,
    }


def decoder(
    keys: FamilyKeys,
    *,
    own_head_dim: bool = True,
    partial_rope: bool = False,
    rope: bool = True,
    windowed: bool = False,
) -> Values:
    """Return what families with attention in every layer have, but for the epsilon of their norms.

    `own_head_dim`: whether heads may have another size than their share of the hidden one; `partial_rope`: whether only a
    part of each may be turned; `rope`: whether positions are turned at all; `windowed`: whether the family itself reads how
    far back attention looks.
    """
    values = common(keys)
    heads = keys.number("attention.head_count", None) or keys.require("attention.head_count")
    share = values["hidden_size"] // heads
    head_dim = keys.number("attention.key_length", share)
    if head_dim != share and not own_head_dim:
        raise keys.refusal("attention.key_length", f"differs from the {share} that the model computes with")
    keys.expect("attention.value_length", head_dim)
    keys.expect("attention.scale", 0.0, head_dim**-0.5)
    context = keys.require("context_length")
    values |= {"max_position_embeddings": context, "num_attention_heads": heads}
    values["num_key_value_heads"] = keys.number("attention.head_count_kv", heads)
    if own_head_dim:
        values["head_dim"] = head_dim
    if not windowed:
        _check_window(keys, context)
    if rope:
        values["rope_parameters"] = read_rope(keys, head_dim, context, partial=partial_rope)
    return values


def _check_window(keys: FamilyKeys, context: int) -> None:
    window = keys.number("attention.sliding_window", 0)
    if 0 < window < context:
        raise keys.refusal("attention.sliding_window", "is one that the model does not have")


def width(keys: FamilyKeys, name: str = "intermediate_size") -> Values:
    """Return the width of the feed-forward networks under `name`."""
    return {name: keys.number("feed_forward_length") or keys.require("feed_forward_length")}


def rms_epsilon(keys: FamilyKeys, name: str = "rms_norm_eps") -> Values:
    """Return the epsilon of norms by the root of the mean square."""
    keys.require("attention.layer_norm_rms_epsilon")
    return {name: _not_negative(keys, "attention.layer_norm_rms_epsilon")}


def _not_negative(keys: FamilyKeys, key: str) -> Any:
    value = keys.number(key)
    if value < 0:
        raise keys.broken(key, "0 or more")
    return value


def epsilon(keys: FamilyKeys, name: str) -> Values:
    """Return the epsilon of norms by mean and variance; a second key for another kind of norm must say the same."""
    if keys.get("attention.layer_norm_epsilon") is None:
        keys.require("attention.layer_norm_rms_epsilon")
        value = _not_negative(keys, "attention.layer_norm_rms_epsilon")
    else:
        value = _not_negative(keys, "attention.layer_norm_epsilon")
    keys.expect("attention.layer_norm_rms_epsilon", value)
    return {name: value}


def experts(keys: FamilyKeys, count: str, *, gating: int = SOFTMAX) -> Values:
    """Return how many experts there are, under `count`, and how many of them a token uses.

    Raises UnsupportedModelError where they are chosen or weighted otherwise than by `gating`, without groups.
    """
    keys.expect("expert_gating_func", gating, reason="is not how this model weights its experts")
    return {count: keys.require("expert_count"), "num_experts_per_tok": keys.number("expert_used_count")}


def expert_width(keys: FamilyKeys, name: str = "moe_intermediate_size") -> Values:
    """Return the width of an expert, which the tensors say where no key does."""
    tensor = keys.header.tensors.get("blk.0.ffn_up_exps.weight")
    stated = keys.number("expert_feed_forward_length")
    return {name: stated or (tensor.shape[1] if tensor is not None else keys.require("expert_feed_forward_length"))}


def window_kinds(keys: FamilyKeys, num_layers: int, period: int) -> list[str]:
    """Return which layers see a window only: as the file lists them, or all but every `period`-th, all for a period of 0."""
    windowed = keys.layers("attention.sliding_window_pattern", num_layers)
    if windowed is None:
        period = keys.get("attention.sliding_window_pattern", period)
        windowed = [period == 0 or (layer + 1) % period != 0 for layer in range(num_layers)]
    return ["sliding_attention" if each else "full_attention" for each in windowed]
