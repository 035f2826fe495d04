"""A lean layer whose matrices are all packed: on a CPU one call of our kernel for a token, or a few for many.

In these each product comes with what surrounds it. The bits are the same.
"""

from typing import Any

import torch

from layermesh.shared.model.caches import kept_layer
from layermesh.shared.model.lean_layer import LeanLayer
from layermesh.shared.quant.around import NOTHING, Around
from layermesh.shared.quant.linear import QuantLinear
from layermesh.shared.quant.native.kernel import DTYPES, HEAD_STEP, WIDEST_HEAD, NativeKernel
from layermesh.shared.quant.native.structures import MOST_FACTORS, Factor, Heads, Layer, addresses
from layermesh.shared.transformers_api import SiLUActivation, take_cache

Phases = tuple[torch.Tensor, torch.Tensor]


class PackedLayer(LeanLayer):
    """Stands in for a lean layer, with its modules; `can_stand_in` says for which."""

    def __init__(self, lean: LeanLayer, kernel: NativeKernel) -> None:
        torch.nn.Module.__init__(self)
        self.__dict__.update(lean.__dict__)
        self._kernel = kernel
        self._qkv: tuple[Any, ...] = tuple(lean.qkv.children())
        self._norms = tuple(
            None if norm is None else norm._parameters
            for norm in (lean.input_layernorm, lean.post_attention_layernorm, lean.q_norm, lean.k_norm)
        )  # where weights are hung; a module takes longer to look into
        self._members: tuple[Any, ...] = *self._qkv, lean.o_proj, *lean.gate_up.children(), lean.down_proj
        self._layer: Layer | None = None
        self._layer_of: list[object] = []  # what it was made of
        self._heads_as: dict[tuple[int, torch.dtype], Heads | None] = {}  # by the width that phases turn

    def forward(
        self,
        hidden_states: torch.Tensor,  # [1, tokens, hidden]
        attention_mask: torch.Tensor | None = None,
        position_embeddings: Phases | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return the hidden states behind the layer, `[1, tokens, hidden]`."""
        assert position_embeddings is not None
        phases = position_embeddings[0].contiguous(), position_embeddings[1].contiguous()
        if cache is None:
            cache = take_cache(kwargs)
        heads = self._describe(phases[0]) if hidden_states.is_cpu and phases[0].dtype is hidden_states.dtype else None
        if heads is None:
            return super().forward(hidden_states, attention_mask, position_embeddings, cache, **kwargs)
        hidden = hidden_states.contiguous()
        if hidden.shape[1] == 1 and attention_mask is None and (layer := self._compose_whole(heads)) is not None:
            kept = kept_layer(cache, self.layer_idx, hidden.dtype)
            room = None if kept is None else kept.room()
            if kept is not None and room is not None:
                results = torch.empty_like(hidden)
                past = kept.get_seq_length()
                self._kernel.pass_token(addresses([layer]), addresses([room]), hidden, phases, past, results)
                kept.grow()
                return results
        query, key, value = self._project(hidden, heads, phases)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        if query.shape[2] == 1 and attention_mask is None:
            found = hidden.new_empty(1, 1, heads.queries * heads.size)
            self._kernel.attend(heads, query, key, value, found)
        else:
            found = self._attend(query, key, value, attention_mask, kwargs).contiguous()
        o_proj, gate_up, down_proj = self._members[-3:]
        hidden = o_proj.forward(found, Around(residual=hidden))
        gated = gate_up.forward(hidden, Around(self._weight(1), self.shape.epsilon, is_gated=True))
        made: torch.Tensor = down_proj.forward(gated, Around(residual=hidden))
        return made

    def _project(self, hidden: torch.Tensor, heads: Heads, phases: Phases) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return queries, keys and values, each `[1, heads, tokens, head_dim]`, the first two turned to their positions."""
        around, column = Around(self._weight(0), self.shape.epsilon), 0
        states = hidden.new_empty(*hidden.shape[:-1], heads.width)
        for member in self._qkv:
            member.forward(hidden, around, states, column)
            column += member.out_features
        self._kernel.turn(heads, states, phases, self._weight(2), self._weight(3))
        by_head = states.view(1, states.shape[1], -1, heads.size).transpose(1, 2)
        query, key, value = by_head.split_with_sizes((heads.queries, heads.keys, heads.keys), dim=1)
        return query, key, value

    def whole(self, phase: torch.Tensor) -> Layer | None:
        """Return this layer for one call on one token with phases like `phase`, `[1, 1, turned]`.

        None where its matrices come one after the other, or not as our kernel reads them.
        """
        heads = self._describe(phase)
        return None if heads is None else self._compose_whole(heads)

    def _compose_whole(self, heads: Heads) -> Layer | None:
        if any("forward" in vars(member) for member in self._members):  # the door of a piece
            return None
        tensors = [self._weight(number) for number in range(len(self._norms))]
        for member in self._members:
            buffers = member._buffers
            tensors += buffers["packed"], buffers["scales"], member._parameters.get("bias")
        made_of: list[object] = [heads, *(None if tensor is None else tensor.data_ptr() for tensor in tensors)]
        if made_of != self._layer_of:
            on_host = all(tensor is None or tensor.is_cpu for tensor in tensors)
            self._layer, self._layer_of = self._compose(heads) if on_host else None, made_of
        return self._layer

    def _compose(self, heads: Heads) -> Layer | None:
        norm, second_norm, query_norm, key_norm = (self._weight(number) for number in range(len(self._norms)))
        epsilon = self.shape.epsilon
        arounds = *[Around(norm, epsilon)] * len(self._qkv), NOTHING, Around(second_norm, epsilon, is_gated=True), NOTHING
        factors = []
        for member, around in zip(self._members, arounds, strict=True):
            product = member.product(1, heads.dtype, around)
            if product is None:
                return None
            factors.append(Factor(product.matrix.address, *_addresses(member.packed, member.scales, member.bias)))
        first = (Factor * MOST_FACTORS)(*factors[:-3])
        norms = _addresses(norm, second_norm, query_norm, key_norm)
        return Layer(heads.address, *norms, len(self._qkv), first, *factors[-3:])

    def _weight(self, number: int) -> torch.Tensor | None:
        parameters = self._norms[number]
        return None if parameters is None else parameters["weight"]

    def _describe(self, phase: torch.Tensor) -> Heads | None:
        """Return how heads lie and turn; None where not all numbers are of one kind that our kernel reads."""
        turned, dtype = phase.shape[-1], phase.dtype
        if (turned, dtype) not in self._heads_as:
            shape = self.shape
            weights = [weight for number in range(len(self._norms)) if (weight := self._weight(number)) is not None]
            fits = dtype in DTYPES and all(weight.dtype is dtype for weight in weights)
            sizes = shape.num_heads, shape.num_key_heads, shape.head_dim
            heads = Heads(*sizes, turned, dtype, shape.epsilon, shape.scaling) if fits else None
            self._heads_as[turned, dtype] = heads
        return self._heads_as[turned, dtype]


def can_stand_in(lean: LeanLayer) -> bool:
    """Whether a PackedLayer can do what `lean` does."""
    members = [*lean.qkv.children(), *lean.gate_up.children(), lean.o_proj, lean.down_proj]
    head_fits = lean.shape.head_dim % HEAD_STEP == 0 and lean.shape.head_dim <= WIDEST_HEAD
    is_gated = len(list(lean.gate_up.children())) == 1 and _is_silu(lean.activation)
    return head_fits and is_gated and all(isinstance(member, QuantLinear) for member in members)


def _addresses(*tensors: torch.Tensor | None) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def _is_silu(activation: Any) -> bool:
    return type(activation) in (torch.nn.SiLU, SiLUActivation)
