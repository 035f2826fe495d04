"""One token of one session through a stage whose blocks are all in place, without the model's own forward around its layers.

That forward builds masks, looks settings up and unpacks arguments, to do for a single token what is written out here. The bits
are the same.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from layermesh.shared.frames import Frame
from layermesh.shared.model.blocks import Block
from layermesh.shared.model.caches import PreallocatedLayer, kept_layer
from layermesh.shared.model.definition import ModelDefinition
from layermesh.shared.model.packed_layer import PackedLayer
from layermesh.shared.model.same_code import same_code
from layermesh.shared.quant.native.kernel import NativeKernel, native_kernel
from layermesh.shared.quant.native.structures import Addresses, Layer, addresses
from layermesh.shared.spans import LayerSpan
from layermesh.worker.binding import Binder
from layermesh.worker.doors import Doors
from layermesh.worker.lookups import RowLookup
from layermesh.worker.sessions import Session

MOST_BYTES: Final = 256 << 20  # of layers in one call of the kernel, during which no signal is noticed
LASTING_ROPES: Final = frozenset({"default", "linear", "llama3", "yarn"})  # of a position alone, whatever came before
AT_ONCE: Final = 64  # positions whose phases are computed together
MOST_TABLES: Final = 16

Tell = Callable[[Block], None]
Phases = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Part:
    """Layers that follow each other in one call, and how the kernel finds them."""

    blocks: Sequence[Block]
    layers: Sequence[Layer]  # to which the addresses lead
    addresses: Addresses


class DecodeStep:
    """Runs single tokens through the packed layers of `span`, and through the norm and the head behind them if it `has_head`.

    `make_decode_step` says for which models. The blocks behind `doors` are those of a stage at rest; `binder` hangs them.
    """

    def __init__(
        self,
        definition: ModelDefinition,
        span: LayerSpan,
        binder: Binder,
        doors: Doors,
        kernel: NativeKernel,
        *,
        has_head: bool,
    ) -> None:
        self._span = span
        self._has_head = has_head
        self._base: Any = definition.model.base_model
        self._layers: list[Any] = [definition.layers[index] for index in span]
        self._dtype: torch.dtype = definition.model.dtype
        self._binder = binder
        self._doors = doors
        self._kernel = kernel
        self._tables: dict[int, Phases] = {}  # of AT_ONCE positions each
        self._parts: list[_Part] | None = None
        self._made_for: tuple[int, Sequence[Block]] | None = None  # the changes of the binder and the blocks then

    def run(self, session: Session, frame: Frame, blocks: Sequence[Block], tell: Tell) -> torch.Tensor | None:
        """Return what the stage makes of a frame with one token: hidden states `[1, 1, hidden]` or logits `[1, 1, vocab]`.

        None where that has to be done by the model's own forward; then nothing has happened. All `blocks` of the stage are
        resident, and `tell` is told of each when its turn comes. Raises MemoryError, and IndexError for an id beyond the
        vocabulary.
        """
        kept = self._kept(session)
        if kept is None or len(frame.token_ids) != 1 or session.position == 0:
            return None
        phases = self._phases(frame.position)
        parts = self._find_parts(phases[0], blocks)
        hidden = None if parts is None else self._enter(frame)
        if parts is None or hidden is None:
            return None
        first = 0
        for part in parts:
            end = first + len(part.layers)
            hidden = self._pass(part, hidden, phases, kept[first:end], tell)
            first = end
        session.pass_by(frame.token_ids[0])
        return self._doors.project(self._base.norm(hidden), tell) if self._has_head else hidden

    def _enter(self, frame: Frame) -> torch.Tensor | None:
        """Return what comes to the first layer; None where that is something else than hidden states of the usual kind."""
        if frame.hidden is None:
            lookup = self._base.embed_tokens.forward
            return lookup.rows(list(frame.token_ids))[None] if isinstance(lookup, RowLookup) else None
        hidden = frame.hidden.tensors[0]
        fits = frame.hidden.bare and hidden is not None and hidden.dtype is self._dtype
        return hidden.contiguous() if hidden is not None and fits else None

    def _pass(
        self, part: _Part, hidden: torch.Tensor, phases: Phases, kept: Sequence[PreallocatedLayer], tell: Tell
    ) -> torch.Tensor:
        """Return the hidden states behind the layers of `part`, which keep what they do in `kept`."""
        for block in part.blocks:
            tell(block)
        made, past = torch.empty_like(hidden), kept[0].get_seq_length()
        rooms = [room for layer in kept if (room := layer.room()) is not None]
        self._kernel.pass_token(part.addresses, addresses(rooms), hidden, phases, past, made)
        for layer in kept:
            layer.grow()
        return made

    def _phases(self, position: int) -> Phases:
        """Return the cosine and the sine of a position, each `[1, 1, turned]`."""
        if getattr(self._base.rotary_emb, "rope_type", None) not in LASTING_ROPES:
            return self._turn([position])
        number, place = divmod(position, AT_ONCE)
        if number not in self._tables:
            if len(self._tables) >= MOST_TABLES:
                self._tables.clear()
            self._tables[number] = self._turn(range(number * AT_ONCE, (number + 1) * AT_ONCE))
        cosines, sines = self._tables[number]
        return cosines.narrow(1, place, 1), sines.narrow(1, place, 1)

    def _turn(self, positions: Sequence[int]) -> Phases:
        likeness = torch.empty(1, dtype=self._dtype)
        cosines, sines = self._base.rotary_emb(likeness, position_ids=torch.tensor([positions]))
        return cosines.contiguous(), sines.contiguous()

    def _kept(self, session: Session) -> list[PreallocatedLayer] | None:
        """Return what the layers of the span keep of the session; None where some have no place for another token."""
        caches = session.caches
        if not self._span:
            return []
        if len(caches) != 1:
            return None
        layers = [kept_layer(caches[0], index, self._dtype) for index in self._span]
        found = [layer for layer in layers if layer is not None and layer.get_seq_length() == session.position]
        return found if len(found) == len(layers) and all(layer.room() is not None for layer in found) else None

    def _find_parts(self, phase: torch.Tensor, blocks: Sequence[Block]) -> list[_Part] | None:
        """Return the layers in parts of at most MOST_BYTES; None where they, or the head, are not as they have to be."""
        if self._made_for is None or self._made_for[0] != self._binder.num_changes or self._made_for[1] is not blocks:
            self._made_for = self._binder.num_changes, blocks
            self._parts = self._make_parts(phase, blocks) if all(map(self._binder.holds, blocks)) else None
        return self._parts

    def _make_parts(self, phase: torch.Tensor, blocks: Sequence[Block]) -> list[_Part] | None:
        layers = [layer.whole(phase) for layer in self._layers]
        own = [block for block in blocks if block.layer is not None]
        if None in layers or [block.layer for block in own] != list(self._span):
            return None
        parts, taken = [], 0
        ends = list(itertools.accumulate(block.loaded_bytes for block in own))
        while taken < len(own):
            before = ends[taken - 1] if taken else 0
            num = max(sum(before < end <= before + MOST_BYTES for end in ends), 1)
            some = layers[taken : taken + num]
            parts.append(_Part(own[taken : taken + num], some, addresses(some)))
            taken += num
        return parts


def make_decode_step(
    definition: ModelDefinition, span: LayerSpan, binder: Binder, doors: Doors, *, has_head: bool
) -> DecodeStep | None:
    """Return what runs single tokens through a stage on the CPU; None where the model's own forward has to."""
    kernel = native_kernel()
    if kernel is None or not all(isinstance(definition.layers[index], PackedLayer) for index in span):
        return None
    if not _is_known(definition):
        return None
    return DecodeStep(definition, span, binder, doors, kernel, has_head=has_head)


def _is_known(definition: ModelDefinition) -> bool:
    """Whether the model does around its layers what Llama, Mistral, Qwen or Phi do."""
    from transformers.models.llama import modeling_llama as llama
    from transformers.models.mistral import modeling_mistral as mistral
    from transformers.models.phi3 import modeling_phi3 as phi3
    from transformers.models.qwen2 import modeling_qwen2 as qwen2
    from transformers.models.qwen3 import modeling_qwen3 as qwen3

    model: Any = definition.model
    base = model.base_model
    bases = llama.LlamaModel, mistral.MistralModel, phi3.Phi3Model, qwen2.Qwen2Model, qwen3.Qwen3Model
    return (
        same_code(type(model).forward, llama.LlamaForCausalLM.forward)
        and any(same_code(type(base).forward, known.forward) for known in bases)
        and getattr(base, "layers", None) is definition.layers
        and len(definition.layers) == base.config.num_hidden_layers
        and type(base.embed_tokens) is nn.Embedding
        and definition.head is not None
        and model.get_submodule(definition.head) is model.lm_head
    )
