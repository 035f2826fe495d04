"""One token of one session through a stage whose blocks are all in place, without the model's own forward around its layers.

That forward builds masks, looks settings up and unpacks arguments, to do for a single token what is written out here. The bits
are the same.
"""

import itertools
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from layermesh.shared.frames import Frame
from layermesh.shared.model.blocks import Block
from layermesh.shared.model.caches import PreallocatedLayer, kept_layer
from layermesh.shared.model.definition import ModelDefinition
from layermesh.shared.model.lean_layer import LeanLayer
from layermesh.shared.model.packed_layer import PackedLayer
from layermesh.shared.model.same_code import same_code
from layermesh.shared.quant.native.kernel import NativeKernel, native_kernel
from layermesh.shared.quant.native.structures import Addresses, Layer, Room, addresses
from layermesh.shared.spans import LayerSpan
from layermesh.worker.binding import Binder
from layermesh.worker.doors import Doors
from layermesh.worker.lookups import RowLookup
from layermesh.worker.sessions import Session

MOST_BYTES: Final = 256 << 20  # of layers in one call of the kernel, during which no signal is noticed
# Past the length that they were made for, Phi-3 drops the cache and runs the whole sequence with other phases.
RESTARTING_ROPES: Final = frozenset({"longrope"})
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


@dataclass(frozen=True, slots=True)
class _Rooms:
    """Where the layers of a span keep what they do of one session, and where the kernel finds that for each of `parts`."""

    parts: Sequence[_Part]
    layers: Sequence[PreallocatedLayer]
    rooms: Sequence[Room]  # to which the addresses lead
    addresses: Sequence[Addresses]
    num_places: int  # tokens, those included that are there


class DecodeStep(ABC):
    """Runs single tokens through the layers of `span`, and through the norm and the head behind them if it `has_head`.

    `make_decode_step` says for which models. The blocks behind `doors` are those of a stage at rest; `binder` hangs them.
    """

    def __init__(self, definition: ModelDefinition, span: LayerSpan, binder: Binder, doors: Doors, *, has_head: bool) -> None:
        self._span = span
        self._has_head = has_head
        self._base: Any = definition.model.base_model
        self._layers: list[Any] = [definition.layers[index] for index in span]
        self._dtype: torch.dtype = definition.model.dtype
        self._binder = binder
        self._doors = doors
        self._tables: dict[int, list[Phases]] = {}  # of AT_ONCE positions each
        self._seen: tuple[int, Sequence[Block]] | None = None  # the changes of the binder, and the blocks, as of the last look
        self._fits = False

    def run(self, session: Session, frame: Frame, blocks: Sequence[Block], tell: Tell) -> torch.Tensor | None:
        """Return what the stage makes of a frame with one token: hidden states `[1, 1, hidden]` or logits `[1, 1, vocab]`.

        None where that has to be done by the model's own forward; then nothing has happened. All `blocks` of the stage are
        resident, and `tell` is told of each when its turn comes. Raises MemoryError, and IndexError for an id beyond the
        vocabulary.
        """
        if len(frame.token_ids) != 1 or session.position == 0:
            return None
        phases = self._phases(frame.position)
        is_ready = self._is_ready(phases[0], blocks) and self._keeps(session)
        hidden = self._enter(frame) if is_ready else None
        if hidden is None:
            return None
        hidden = self._pass(session, hidden, phases, tell)
        session.pass_by(frame.token_ids[0])
        return self._doors.project(self._base.norm(hidden), tell) if self._has_head else hidden

    @abstractmethod
    def _prepare(self, phase: torch.Tensor, own: Sequence[Block]) -> bool:
        """Get ready for the layers' blocks as they hang now; False where they are not as they have to be."""

    @abstractmethod
    def _keeps(self, session: Session) -> bool:
        """Whether what the layers keep of the session has a place for another token; notes that with the session."""

    @abstractmethod
    def _pass(self, session: Session, hidden: torch.Tensor, phases: Phases, tell: Tell) -> torch.Tensor:
        """Return the hidden states behind the layers, which keep what they do."""

    def _is_ready(self, phase: torch.Tensor, blocks: Sequence[Block]) -> bool:
        if self._seen is None or self._seen[0] != self._binder.num_changes or self._seen[1] is not blocks:
            self._seen = self._binder.num_changes, blocks
            own = [block for block in blocks if block.layer is not None]
            is_whole = [block.layer for block in own] == list(self._span)
            self._fits = is_whole and all(map(self._binder.holds, blocks)) and self._prepare(phase, own)
        return self._fits

    def _enter(self, frame: Frame) -> torch.Tensor | None:
        """Return what comes to the first layer; None where that is something else than hidden states of the usual kind."""
        if frame.hidden is None:
            lookup = self._base.embed_tokens.forward
            return lookup.rows(list(frame.token_ids))[None] if isinstance(lookup, RowLookup) else None
        hidden = frame.hidden.tensors[0]
        fits = frame.hidden.bare and hidden is not None and hidden.dtype is self._dtype
        return hidden.contiguous() if hidden is not None and fits else None

    def _phases(self, position: int) -> Phases:
        """Return the cosine and the sine of a position, each `[1, 1, turned]`."""
        if getattr(self._base.rotary_emb, "rope_type", None) not in LASTING_ROPES:
            return self._turn([position])
        number, place = divmod(position, AT_ONCE)
        if number not in self._tables:
            if len(self._tables) >= MOST_TABLES:
                self._tables.clear()
            cosines, sines = self._turn(range(number * AT_ONCE, (number + 1) * AT_ONCE))
            self._tables[number] = [(cosines.narrow(1, at, 1), sines.narrow(1, at, 1)) for at in range(AT_ONCE)]
        return self._tables[number][place]

    def _turn(self, positions: Sequence[int]) -> Phases:
        likeness = torch.empty(1, dtype=self._dtype)
        cosines, sines = self._base.rotary_emb(likeness, position_ids=torch.tensor([positions]))
        return cosines.contiguous(), sines.contiguous()

    def _kept_layers(self, session: Session) -> list[PreallocatedLayer] | None:
        """Return what the layers of the span keep of the session; None where some do it in another way."""
        caches = session.caches
        if len(caches) != 1:
            return None if self._span else []
        layers = [kept_layer(caches[0], index, self._dtype) for index in self._span]
        found = [layer for layer in layers if layer is not None and layer.get_seq_length() == session.position]
        return found if len(found) == len(layers) else None


class PackedStep(DecodeStep):
    """For packed layers: several of them in one call of our kernel."""

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
        super().__init__(definition, span, binder, doors, has_head=has_head)
        self._kernel = kernel
        self._parts: list[_Part] = []  # of at most MOST_BYTES

    def _prepare(self, phase: torch.Tensor, own: Sequence[Block]) -> bool:
        layers = [layer.whole(phase) for layer in self._layers]
        self._parts, taken = [], 0
        if None in layers:
            return False
        ends = list(itertools.accumulate(block.loaded_bytes for block in own))
        while taken < len(own):
            before = ends[taken - 1] if taken else 0
            num = max(sum(before < end <= before + MOST_BYTES for end in ends), 1)
            some = layers[taken : taken + num]
            self._parts.append(_Part(own[taken : taken + num], some, addresses(some)))
            taken += num
        return True

    def _keeps(self, session: Session) -> bool:
        if session.kept is None or session.kept.parts is not self._parts:
            session.kept = self._find_rooms(session)
        return session.kept is not None and session.position < session.kept.num_places

    def _find_rooms(self, session: Session) -> _Rooms | None:
        layers = self._kept_layers(session)
        rooms = [room for layer in layers or () if (room := layer.room()) is not None]
        if layers is None or len(rooms) < len(layers):
            return None
        ends = list(itertools.accumulate(len(part.layers) for part in self._parts))
        places = [addresses(rooms[end - len(part.layers) : end]) for part, end in zip(self._parts, ends, strict=True)]
        num_places = min((layer.num_places for layer in layers), default=sys.maxsize)
        return _Rooms(self._parts, layers, rooms, places, num_places)

    def _pass(self, session: Session, hidden: torch.Tensor, phases: Phases, tell: Tell) -> torch.Tensor:
        rooms: _Rooms = session.kept
        for part, places in zip(self._parts, rooms.addresses, strict=True):
            for block in part.blocks:
                tell(block)
            made = torch.empty_like(hidden)
            self._kernel.pass_token(part.addresses, places, hidden, phases, session.position, made)
            hidden = made
        for layer in rooms.layers:
            layer.grow()
        return hidden


class LeanStep(DecodeStep):
    """For lean layers of any kind: their own forward, one after the other."""

    def __init__(self, definition: ModelDefinition, span: LayerSpan, binder: Binder, doors: Doors, *, has_head: bool) -> None:
        super().__init__(definition, span, binder, doors, has_head=has_head)
        self._forwards = [doors.behind(index) for index in span]
        self._own: Sequence[Block] = ()

    def run(self, session: Session, frame: Frame, blocks: Sequence[Block], tell: Tell) -> torch.Tensor | None:
        """As every step does; caches are of this mode."""
        with torch.inference_mode():
            return super().run(session, frame, blocks, tell)

    def _prepare(self, phase: torch.Tensor, own: Sequence[Block]) -> bool:  # noqa: ARG002 - packed layers depend on it
        self._own = own
        return True

    def _keeps(self, session: Session) -> bool:
        if session.kept is None and self._kept_layers(session) is not None:
            session.kept = session.caches or [None]
        return session.kept is not None

    def _pass(self, session: Session, hidden: torch.Tensor, phases: Phases, tell: Tell) -> torch.Tensor:
        cache = session.kept[0]
        for block, forward in zip(self._own, self._forwards, strict=True):
            tell(block)
            hidden = forward(hidden, None, phases, cache)
        return hidden


def make_decode_step(
    definition: ModelDefinition, span: LayerSpan, binder: Binder, doors: Doors, *, has_head: bool
) -> DecodeStep | None:
    """Return what runs single tokens through a stage on the CPU; None where the model's own forward has to."""
    kernel, layers = native_kernel(), [definition.layers[index] for index in span]
    if not all(isinstance(layer, LeanLayer) for layer in layers) or not _is_known(definition):
        return None
    if kernel is not None and all(isinstance(layer, PackedLayer) for layer in layers):
        return PackedStep(definition, span, binder, doors, kernel, has_head=has_head)
    return LeanStep(definition, span, binder, doors, has_head=has_head)


def _is_known(definition: ModelDefinition) -> bool:
    """Whether the model does around its layers what Llama, Mistral, Qwen or Phi do."""
    from layermesh.shared.transformers_api import modeling_llama as llama
    from layermesh.shared.transformers_api import modeling_mistral as mistral
    from layermesh.shared.transformers_api import modeling_phi3 as phi3
    from layermesh.shared.transformers_api import modeling_qwen2 as qwen2
    from layermesh.shared.transformers_api import modeling_qwen3 as qwen3

    model: Any = definition.model
    base = model.base_model
    bases = llama.LlamaModel, mistral.MistralModel, phi3.Phi3Model, qwen2.Qwen2Model, qwen3.Qwen3Model
    return (
        same_code(type(model).forward, llama.LlamaForCausalLM.forward)
        and any(same_code(type(base).forward, known.forward) for known in bases)
        and getattr(base, "layers", None) is definition.layers
        and len(definition.layers) == base.config.num_hidden_layers
        and type(base.embed_tokens) is nn.Embedding
        and getattr(base.rotary_emb, "rope_type", None) not in RESTARTING_ROPES
        and definition.head is not None
        and model.get_submodule(definition.head) is model.lm_head
    )
