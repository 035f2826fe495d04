"""Check that a layer finds what it cached: two tokens in one call and one after the other must come out alike.

transformers decides how a layer is handed its cache. A release that changes it would otherwise go unnoticed: the layer would
attend to the last token alone, and the answer would be fluent nonsense.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from layermesh.shared.errors import UnsupportedModelError
from layermesh.shared.frames import Frame, LayerOutput, SessionId
from layermesh.shared.model.blocks import Block
from layermesh.shared.model.definition import ModelDefinition
from layermesh.shared.model.lean_layer import LeanLayer
from layermesh.shared.spans import LayerSpan
from layermesh.shared.tested_versions import installed, supported_range
from layermesh.worker.doors import Forward, StageEnd, current_forward
from layermesh.worker.sessions import Session

NUM_TRIALS: Final = 3  # all must disagree: rounding may send a single token to another expert
MAX_ERROR: Final = 0.25  # of what another first token changes in the second one
NOISE_FACTOR: Final = 8.0  # by which that change must exceed the rounding of the first token
MAX_NOISE: Final = 0.1  # relative, of the first token, which has no context
_SESSION: Final = SessionId("cache check")


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Three tokens, and what the stage before made of each `[1, 1, hidden]`, None in front of the first layer."""

    token_ids: tuple[int, int, int]
    hidden: tuple[torch.Tensor, ...] | None = None
    bare: bool = True

    def entry(self, tokens: Sequence[int]) -> LayerOutput | None:
        """Return the hidden states of those of the three `tokens`."""
        if self.hidden is None:
            return None
        return LayerOutput((torch.cat([self.hidden[token] for token in tokens], dim=1),), self.bare)


class CacheCheck:
    """Runs a few tokens through the first layer of each kind of a stage, as the first forward of its first sweep.

    It needs no block that the others do not need. `blocks` are those of the stage, and `hidden` is what it received with its
    first frame.
    """

    def __init__(
        self,
        definition: ModelDefinition,
        span: LayerSpan,
        device: torch.device,
        blocks: Sequence[Block],
        hidden: LayerOutput | None,
    ) -> None:
        self._definition = definition
        self._span = span
        self._device = device
        self._blocks = blocks
        self._trials = list(_inputs(definition.vocab_size, hidden))
        self._disagrees = False

    def raise_disagreement(self) -> None:
        """Raise UnsupportedModelError where the check has run and the cache does not work."""
        if self._disagrees:
            raise UnsupportedModelError(
                f"{type(self._definition.model).__name__} cannot be run with {installed('transformers')} and "
                f"{installed('torch')}: its layers do not find what they cached, so answers would be wrong. Install versions "
                f"that layermesh was tested with: pip install '{supported_range('transformers')}' '{supported_range('torch')}'."
            )

    def forward(self) -> Forward:
        """Return what takes part in the sweep."""
        return Forward(self._run, None)

    def _run(self) -> None:
        self._disagrees = bool(self._trials) and not any(map(self._agrees, self._trials))

    def _agrees(self, inputs: _Inputs) -> bool:
        """Return False where a layer computes something else in two calls than in one."""
        outputs: list[LayerOutput | None] = [inputs.entry(tokens) for tokens in ((0, 1), (2, 1), (0,), (1,))]
        for layer in self._first_of_each_kind():
            current_forward().only = {block.name for block in self._blocks if block.layer == layer}
            outputs = [
                *self._calls(inputs, [(0, 1)], outputs[:1]),
                *self._calls(inputs, [(2, 1)], outputs[1:2]),
                *self._calls(inputs, [(0,), (1,)], outputs[2:]),
            ]
            verdict = _verdict(outputs) if self._is_handed_a_cache(layer) else None
            if verdict is False:
                return False
            outputs = _without_context(outputs)
            if not outputs:
                return True
        return True

    def _first_of_each_kind(self) -> Iterator[int]:
        """Yield layers of the span that differ in their classes or in what the configuration calls them, such as attention."""
        seen: set[object] = set()
        kinds = getattr(self._definition.model.config.get_text_config(decoder=True), "layer_types", None) or ()
        for index in self._span:
            layer = self._definition.layers[index]
            kind = type(layer), tuple(map(type, layer.children())), kinds[index] if index < len(kinds) else None
            if kind not in seen:
                seen.add(kind)
                yield index

    def _is_handed_a_cache(self, layer: int) -> bool:
        """Whether the layer must find what it cached: others keep their state elsewhere, or see all tokens again."""
        return current_forward().cache is not None or isinstance(self._definition.layers[layer], LeanLayer)

    def _calls(
        self, inputs: _Inputs, calls: Sequence[Sequence[int]], befores: Sequence[LayerOutput | None]
    ) -> Iterator[LayerOutput | None]:
        """Run calls of one sequence and yield what the layer returns; `befores` are the outputs of the layer before it."""
        forward = current_forward()
        session = Session(_SESSION, self._definition, self._span, self._device, sum(map(len, calls)))
        for tokens, before in zip(calls, befores, strict=True):
            ids = tuple(inputs.token_ids[token] for token in tokens)
            frame = Frame(_SESSION, 0, 0, session.position, ids, inputs.entry(tokens))
            forward.entry = frame.hidden and frame.hidden.to(self._device)
            forward.output = before and before.to(self._device)
            forward.last_layer, forward.cache = -1, None
            try:
                session.finish(frame, self._definition.model(**session.inputs(frame)))
            except StageEnd:
                session.finish(frame, forward.cache)
            yield forward.output


def _inputs(vocab_size: int, hidden: LayerOutput | None) -> Iterator[_Inputs]:
    """Yield tokens from all over the vocabulary; with them random hidden states, where `hidden` has nothing but such."""
    if hidden is not None and (len([each for each in hidden.tensors if each is not None]) != 1 or hidden.tensors[0] is None):
        return
    generator = torch.Generator().manual_seed(0)
    for trial in range(NUM_TRIALS):
        first, second, other = ((3 * number + trial + 1) * vocab_size // (3 * NUM_TRIALS + 1) for number in range(3))
        if hidden is None:
            yield _Inputs((first, second, other))
            continue
        like = hidden.tensors[0]
        assert like is not None
        states = torch.randn(3, 1, 1, like.shape[-1], generator=generator).to(like.dtype)
        yield _Inputs((first, second, other), tuple(states), hidden.bare)


def _without_context(outputs: Sequence[LayerOutput | None]) -> list[LayerOutput | None]:
    """Return inputs for another layer in which token 1 is the same whatever came before it; nothing where that cannot be.

    `outputs` are those of `_verdict`. A difference that an earlier layer made would hide what this one makes of its cache.
    """
    together, elsewhere = outputs[0], outputs[1]
    if together is None or elsewhere is None or [len(output.tensors) for output in (together, elsewhere)] != [1, 1]:
        return []
    one, other = together.tensors[0], elsewhere.tensors[0]
    if one is None or other is None or one.shape[1] != 2:
        return []
    first, second, third = one[:, :1], one[:, 1:], other[:, :1]
    states = torch.cat((first, second), dim=1), torch.cat((third, second), dim=1), first, second
    return [LayerOutput((state,), together.bare) for state in states]


def _verdict(outputs: Sequence[LayerOutput | None]) -> bool | None:
    """Compare a layer's outputs for tokens 0 and 1 together, 2 and 1 together, 0 alone and 1 after it.

    Return whether they agree; None where this layer cannot tell: the token before makes no difference to it, or it has not
    a row for each token.
    """
    tensors = [output.tensors[0] for output in outputs if output is not None]
    together, elsewhere, alone, after = (tensor[0].float() for tensor in tensors if tensor is not None)  # [tokens, hidden]
    if (len(together), len(elsewhere), len(alone), len(after)) != (2, 2, 1, 1):  # a family whose positions are no tokens
        return None
    size, noise = float(together[0].norm()), float((together[0] - alone[0]).norm())
    effect, error = float((together[1] - elsewhere[1]).norm()), float((together[1] - after[0]).norm())
    if noise > MAX_NOISE * size:
        return False
    dtype = next(tensor.dtype for tensor in tensors if tensor is not None)
    least = max(1e-3, 4 * torch.finfo(dtype).eps) * float(together[1].norm())
    return error <= MAX_ERROR * effect if effect > max(least, NOISE_FACTOR * noise) else None
