"""Which decoder layers have the Llama shape, told by their code rather than by their names."""

import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from layermesh.shared.model.lean_layer import LeanShape
from layermesh.shared.model.same_code import same_code


def lean_shape(layer: Any) -> LeanShape | None:
    """Return how `layer` differs from others of the Llama shape; None where it is of another shape."""
    attention, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    if attention is None or mlp is None or not _is_known(layer, attention, mlp):
        return None
    config = attention.config
    if config._attn_implementation != "sdpa" or not _linears(attention, mlp):
        return None
    epsilons = {module.variance_epsilon for module in layer.modules() if hasattr(module, "variance_epsilon")}
    if len(epsilons) != 1:
        return None
    return LeanShape(
        num_heads=config.num_attention_heads,
        num_key_heads=config.num_key_value_heads,
        head_dim=attention.head_dim,
        scaling=attention.scaling,
        epsilon=epsilons.pop(),
    )


def _is_known(layer: Any, attention: Any, mlp: Any) -> bool:
    """Whether the layer and its parts do what Llama, Mistral, Qwen or Phi do."""
    from layermesh.shared.transformers_api import modeling_llama as llama
    from layermesh.shared.transformers_api import modeling_mistral as mistral
    from layermesh.shared.transformers_api import modeling_phi3 as phi3
    from layermesh.shared.transformers_api import modeling_qwen2 as qwen2
    from layermesh.shared.transformers_api import modeling_qwen3 as qwen3

    norms = [module for module in layer.modules() if hasattr(module, "variance_epsilon")]
    rotary = vars(sys.modules[type(attention).__module__]).get("apply_rotary_pos_emb")
    return (
        _among(layer, llama.LlamaDecoderLayer, phi3.Phi3DecoderLayer)
        and _among(
            attention,
            llama.LlamaAttention,
            mistral.MistralAttention,
            qwen2.Qwen2Attention,
            qwen3.Qwen3Attention,
            phi3.Phi3Attention,
        )
        and _among(mlp, llama.LlamaMLP, phi3.Phi3MLP)
        and all(_among(norm, llama.LlamaRMSNorm) for norm in norms)
        and rotary is not None
        and any(same_code(rotary, known) for known in (llama.apply_rotary_pos_emb, phi3.apply_rotary_pos_emb))
        and same_code(vars(sys.modules[type(attention).__module__])["rotate_half"], llama.rotate_half)
    )


def _among(module: Any, *known: Any) -> bool:
    return any(same_code(type(module).forward, each.forward) for each in known)


def _linears(attention: Any, mlp: Any) -> bool:
    """Whether every matrix is a plain one, and those with one input agree on a bias."""
    groups = [(attention, qkv_names(attention)), (mlp, gate_up_names(mlp)), (attention, ("o_proj",)), (mlp, ("down_proj",))]
    for owner, names in groups:
        members = [getattr(owner, name, None) for name in names]
        if not all(type(member) is nn.Linear for member in members):
            return False
        if len({member.bias is None for member in members if isinstance(member, nn.Linear)}) > 1:
            return False
    return True


def qkv_names(attention: Any) -> tuple[str, ...]:
    """Return what the layers for queries, keys and values are called."""
    return ("qkv_proj",) if hasattr(attention, "qkv_proj") else ("q_proj", "k_proj", "v_proj")


def gate_up_names(mlp: Any) -> tuple[str, ...]:
    """Return what the layers for both halves of a gated MLP are called."""
    return ("gate_up_proj",) if hasattr(mlp, "gate_up_proj") else ("gate_proj", "up_proj")


def activation_of(mlp: Any) -> Callable[..., Any]:
    """Return the function between the two halves of a gated MLP."""
    found: Callable[..., Any] = mlp.act_fn if hasattr(mlp, "act_fn") else mlp.activation_fn
    return found
