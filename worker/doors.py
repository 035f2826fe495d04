"""Doors in front of a model's layers, past which its own forward runs unchanged.

Each session's forward is a coroutine. At the door of a block it pauses until the block is on the device; a layer that
belongs to another stage lets it pass with what that stage handed over; behind the last layer of the stage it ends.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import nn
from transformers import Cache

from layermesh.shared.errors import UnsupportedModelError
from layermesh.shared.frames import LayerOutput
from layermesh.shared.model.blocks import Block
from layermesh.shared.model.definition import ModelDefinition
from layermesh.shared.model.lean_layer import LeanLayer
from layermesh.shared.quant.linear import PackedHead
from layermesh.shared.quant.plain import multiply, suits
from layermesh.shared.spans import LayerSpan
from layermesh.worker.host_layers import HostLayers


class StageEnd(BaseException):
    """Ends a forward behind the last layer of its stage; not an Exception, so that no model code catches it."""

    def __init__(self, output: LayerOutput) -> None:
        self.output = output


class Forward(greenlet):
    """One session's forward, paused wherever it needs a block that may not be there.

    `wanted` is the block it waits for, None once it has ended; then `result` is what it returned (the model's outputs, or a
    LayerOutput where the stage ends before the model does) or `failure` what it raised. `cache` is the one its layers were
    handed, which some families make in the middle of their first call. The blocks `on_host` come there, not to the device. A
    trial runs `only` some blocks, the first layer among them, and passes over the others. One that `takes_turns` lets the
    others of its sweep have the same part of a matrix before it takes the next. It goes straight through the doors of blocks
    that are `at_hand`.
    """

    def __init__(
        self,
        run: Callable[[], Any],
        entry: LayerOutput | None,
        on_host: frozenset[str] = frozenset(),
        only: Collection[str] | None = None,
        *,
        takes_turns: bool = False,
    ) -> None:
        super().__init__(self._run_to_end)
        self.takes_turns = takes_turns
        self.at_hand: Callable[[Block], bool] = _nothing_is
        self._held: Block | None = None
        self._forward = run
        self.entry = entry
        self.on_host = on_host
        self.only = only
        self.output = entry
        self.last_layer = -1
        self.cache: Cache | None = None
        self.wanted: Block | None = None
        self.result: Any = None
        self.failure: Exception | None = None

    def advance(self) -> None:
        """Run up to the next door or to the end."""
        self._held, self.wanted = self.wanted, None
        self.wanted = self.switch()

    def passes_over(self, block: Block) -> bool:
        """Whether a trial leaves `block` out."""
        return self.only is not None and block.name not in self.only

    def pause(self, block: Block) -> None:
        """From inside the forward: wait until the driver has brought `block`."""
        if block is not self._held and not self.at_hand(block):
            assert self.parent is not None
            self.parent.switch(block)

    def let_others(self) -> None:
        """From inside the forward, in the middle of a block: wait until all that are there have come as far."""
        assert self._held is not None
        assert self.parent is not None
        self.parent.switch(self._held)

    def _run_to_end(self) -> None:
        try:
            self.result = self._forward()
        except StageEnd as end:
            self.result = end.output
        except Exception as error:
            self.failure = error


class Doors:
    """The doors of one stage, in front of the layers and the head of a model definition of its own."""

    def __init__(self, definition: ModelDefinition, span: LayerSpan, host_layers: HostLayers, *, has_head: bool) -> None:
        self._definition = definition
        self._hands_on = not has_head  # what the last layer of the span returns, to another stage
        self._host_layers = host_layers
        self._span = span
        self._layers: Mapping[int, Block] = {}
        self._head: Sequence[Block] = ()
        self._pieces: Mapping[str, Block] = {}
        self._is_lean = any(isinstance(layer, LeanLayer) for layer in definition.layers)  # the head, too, is then multiplied so
        self._doored: set[str] = set()  # linear layers with a door of their own
        self._forwards: list[Any] = [layer.forward for layer in definition.layers]
        for index, layer in enumerate(definition.layers):
            layer.forward = partial(self._pass_layer, index)
        if definition.head is not None and has_head:
            self._projection: Any = definition.model.get_submodule(definition.head)
            self._project = self._projection.forward
            self._projection.forward = self._pass_head

    def behind(self, index: int) -> Any:
        """Return the forward of a layer itself, which waits for nothing."""
        return self._forwards[index]

    def lead_to(self, blocks: Sequence[Block]) -> None:
        """Set the blocks behind the doors: of each layer, or its core and its pieces, and of the head or its pieces."""
        self._layers = {block.layer: block for block in blocks if block.layer is not None and block.module is None}
        self._pieces = {block.module: block for block in blocks if block.module is not None}
        self._head = [block for block in blocks if block.layer is None]
        for name in self._pieces.keys() - self._doored:
            module = self._definition.model.get_submodule(name)
            module.forward = partial(self._pass_piece, name, module.forward)
            self._doored.add(name)

    def _pass_piece(self, name: str, forward: Any, *args: Any, **kwargs: Any) -> Any:
        piece = self._pieces.get(name)
        if piece is not None:
            current_forward().pause(piece)
        return forward(*args, **kwargs)

    def _pass_layer(self, index: int, *args: Any, **kwargs: Any) -> Any:
        forward = current_forward()
        self._check_order(forward, index)
        handed = (*args, *kwargs.values())
        forward.cache = next((value for value in handed if isinstance(value, Cache)), forward.cache)
        if index < self._span.start:
            assert forward.entry is not None
            return forward.entry.returned()
        if index >= self._span.end:  # the model left out the last layer of the span
            assert forward.output is not None
            raise StageEnd(forward.output)
        if not forward.passes_over(self._layers[index]):
            forward.pause(self._layers[index])
            returned = self._run_layer(forward, index, args, kwargs)
            if not self._hands_on and forward.only is None:
                return returned
            forward.output = LayerOutput.of(returned)
        assert forward.output is not None
        if self._hands_on and index == self._span.end - 1:
            raise StageEnd(forward.output)
        return forward.output.returned()

    def _run_layer(self, forward: Forward, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        block = self._layers[index]
        if block.name in forward.on_host:
            return self._host_layers.run(block, self._forwards[index], forward.cache, args, kwargs)
        self._host_layers.bring_cache(forward.cache, block)
        return self._forwards[index](*args, **kwargs)

    def _check_order(self, forward: Forward, index: int) -> None:
        if index <= forward.last_layer and (self._hands_on or self._span.start > 0):
            raise UnsupportedModelError(
                f"{type(self._definition.model).__name__} goes through its layers more than once per token, so they cannot be "
                "divided among machines. Run it with --alone."
            )
        forward.last_layer = index

    def _pass_head(self, hidden: torch.Tensor) -> Any:
        # The last token cut out of a prompt keeps the prompt's strides, for which torch copies the whole matrix.
        hidden = hidden.clone(memory_format=torch.contiguous_format)
        if any(current_forward().passes_over(block) for block in self._head):
            return hidden.new_zeros(*hidden.shape[:-1], self._definition.vocab_size)
        return self.project(hidden, lambda block: current_forward().pause(block))

    def project(self, hidden: torch.Tensor, wait_for: Callable[[Block], None]) -> torch.Tensor:
        """Compute the output projection, `[..., hidden]`, contiguous, to `[..., vocab]`; `wait_for` each block before."""
        if len(self._head) > 1:
            return self._project_pieces(hidden, wait_for)
        for block in self._head:
            wait_for(block)
        projected: torch.Tensor = self._project(hidden)
        return projected

    def _project_pieces(self, hidden: torch.Tensor, wait_for: Callable[[Block], None]) -> torch.Tensor:
        if isinstance(self._projection, PackedHead):
            return self._project_packed(hidden, self._projection, wait_for)
        ends = [piece.rows[1] for piece in self._head if piece.rows is not None]
        logits = hidden.new_empty(*hidden.shape[:-1], ends[-1])
        for piece in self._head:
            assert piece.rows is not None
            wait_for(piece)
            start, end = piece.rows
            bias = None if self._projection.bias is None else self._projection.bias[start:end]
            weight = self._projection.weight
            product = multiply if self._is_lean and suits(hidden, weight, bias) else nn.functional.linear
            logits[..., start:end] = product(hidden, weight, bias)
        return logits

    def _project_packed(self, hidden: torch.Tensor, projection: PackedHead, wait_for: Callable[[Block], None]) -> torch.Tensor:
        logits = hidden.new_empty(*hidden.shape[:-1], projection.bounds[-1])
        for number, piece in enumerate(self._head):
            wait_for(piece)
            projection.project(number, hidden, logits)
        return logits


def current_forward() -> Forward:
    """Return the forward that a layer is called in."""
    forward = getcurrent()
    assert isinstance(forward, Forward), "a layer was called outside a sweep"
    return forward


def _nothing_is(_block: Block) -> bool:
    return False
