"""A decoder layer of the Llama shape, written out: what is left when nothing is looked up, wrapped or checked.

RMSNorm, rotary phases, grouped queries, a gated MLP, and one matrix product where the original makes two or three. It rounds
a little differently than the original, within what the tests state.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from layermesh.shared.transformers_api import ALL_ATTENTION_FUNCTIONS, take_cache


@dataclass(frozen=True, slots=True)
class LeanShape:
    """The few numbers in which layers of the Llama shape differ."""

    num_heads: int
    num_key_heads: int
    head_dim: int
    scaling: float
    epsilon: float


class Fused(nn.Module):
    """Linear layers with one input: as one product, or one after the other where their weights cannot lie together."""

    def __init__(self, members: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, member in members.items():
            self.add_module(name, member)

    def forward(self, hidden: torch.Tensor) -> Any:
        """Return what the layers make of `hidden`, side by side: `[..., in]` to `[..., sum of out]`."""
        parts: list[torch.Tensor] = [member.forward(hidden) for member in self._modules.values()]  # type: ignore[union-attr]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


class Turner:
    """Rotates heads by the phases of their positions; one for all layers, which get the same phases one after the other."""

    def __init__(self) -> None:
        self._phases: tuple[torch.Tensor, torch.Tensor] | None = None
        self._cos = self._sin = torch.empty(0)  # of these phases, as heads are multiplied with them

    def turn(self, heads: torch.Tensor, phases: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Return `heads`, `[1, tokens, heads, head_dim]`, turned by a cosine and a sine, each `[1, tokens, turned]`."""
        if self._phases is not phases:
            self._prepare(phases)
        width = self._cos.shape[-1]
        if width < heads.shape[-1]:
            return torch.cat((self.turn(heads[..., :width], phases), heads[..., width:]), dim=-1)
        return torch.addcmul(heads * self._cos, heads.roll(width // 2, dims=-1), self._sin)

    def _prepare(self, phases: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Give the sine the signs that the halves take once they are swapped."""
        first, second = phases[1].chunk(2, dim=-1)
        self._phases = phases
        self._cos = phases[0].unsqueeze(2)  # [1, tokens, 1, turned]
        self._sin = torch.cat((-first, second), dim=-1).unsqueeze(2)


class LeanLayer(nn.Module):
    """Called as the layer that it stands in for, with the same result but for rounding."""

    def __init__(
        self,
        original: Any,
        shape: LeanShape,
        qkv: Fused,
        gate_up: Fused,
        activation: Callable[[torch.Tensor], torch.Tensor],
        turner: Turner,
    ) -> None:
        super().__init__()
        attention = original.self_attn
        self.shape = shape
        self.layer_idx: int = attention.layer_idx
        self.config = attention.config
        self.is_causal = True
        self.num_key_value_groups = shape.num_heads // shape.num_key_heads
        self.input_layernorm = original.input_layernorm
        self.qkv = qkv
        self.q_norm = getattr(attention, "q_norm", None)
        self.k_norm = getattr(attention, "k_norm", None)
        self.o_proj = attention.o_proj
        self.post_attention_layernorm = original.post_attention_layernorm
        self.gate_up = gate_up
        self.down_proj = original.mlp.down_proj
        self.activation = activation
        self.turner = turner
        for name, value in vars(original).items():  # such as the kind of attention, which its caller looks up
            if not name.startswith("_") and not hasattr(self, name):
                setattr(self, name, value)

    def forward(
        self,
        hidden_states: torch.Tensor,  # [1, tokens, hidden]
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return the hidden states behind the layer, `[1, tokens, hidden]`."""
        assert position_embeddings is not None
        query, key, value = self._heads(self._norm(hidden_states, self.input_layernorm.weight), position_embeddings)
        if cache is None:
            cache = take_cache(kwargs)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        hidden_states = hidden_states + self.o_proj.forward(self._attend(query, key, value, attention_mask, kwargs))
        gate, up = self.gate_up.forward(self._norm(hidden_states, self.post_attention_layernorm.weight)).chunk(2, dim=-1)
        added: torch.Tensor = self.down_proj.forward(self.activation(gate) * up)
        return hidden_states + added

    def _norm(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if hidden.numel() > weight.numel() or not hidden.is_cpu:
            return torch.rms_norm(hidden, weight.shape, weight, self.shape.epsilon)
        length = torch.linalg.vector_norm(hidden, dtype=torch.float32).item()  # of one token: four small kernels, not ten
        scale: float = (length * length / weight.numel() + self.shape.epsilon) ** -0.5
        return hidden * scale * weight

    def _heads(
        self, normed: torch.Tensor, phases: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return queries, keys and values, each `[1, heads, tokens, head_dim]`, the first two turned to their positions."""
        heads = self.qkv.forward(normed).view(*normed.shape[:-1], -1, self.shape.head_dim)  # [1, tokens, heads, head_dim]
        sizes = [self.shape.num_heads, self.shape.num_key_heads]
        looking = heads[:, :, : sum(sizes)]
        if self.q_norm is not None and self.k_norm is not None:
            query, key = torch.split(looking, sizes, dim=2)
            looking = torch.cat((self._norm(query, self.q_norm.weight), self._norm(key, self.k_norm.weight)), dim=2)
        query, key = torch.split(self.turner.turn(looking, phases).transpose(1, 2), sizes, dim=1)
        return query, key, heads[:, :, sum(sizes) :].transpose(1, 2)

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        kwargs: dict[str, Any],
    ) -> torch.Tensor:
        """Return `[1, tokens, heads × head_dim]`."""
        if query.shape[2] == 1 and (mask is None or mask.shape[1] == 1):
            grouped = query.reshape(1, self.shape.num_key_heads, -1, self.shape.head_dim)  # queries of one key head as rows
            found = nn.functional.scaled_dot_product_attention(grouped, key, value, mask, scale=self.shape.scaling)
            return found.reshape(1, 1, -1)
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        together: torch.Tensor = attend(self, query, key, value, mask, scaling=self.shape.scaling, **kwargs)[0]
        return together.flatten(2)
