"""A span of layers loaded on one device: frames in, frames or logits out."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from layermesh.shared.errors import LayermeshError, ModelError
from layermesh.shared.footprint import Footprint
from layermesh.shared.frames import Frame, LayerOutput, Logits, SessionId
from layermesh.shared.model.blocks import Block, BlockTable
from layermesh.shared.model.definition import ModelDefinition
from layermesh.shared.residency import Residency, plan_residency
from layermesh.shared.spans import LayerSpan
from layermesh.worker.binding import Binder
from layermesh.worker.buffers import Buffer, block_tensors
from layermesh.worker.doors import Doors, Forward
from layermesh.worker.files import FileReader
from layermesh.worker.loading import BlockLoader
from layermesh.worker.lookups import RowLookup
from layermesh.worker.placement import DevicePlacement, HostPlacement
from layermesh.worker.sessions import Session
from layermesh.worker.streaming import Streamer
from layermesh.worker.sweep import sweep


Watcher = Callable[[Block], None]


class Stage:
    """Runs the layers of `span` for the sessions that are opened on it, within `budget_bytes` of the device's memory.

    The definition becomes the stage's own: doors are hung into it. The last stage also runs what comes behind the layers and
    returns logits. `watcher`, where set, is told of each block when its turn comes.
    """

    def __init__(
        self, definition: ModelDefinition, table: BlockTable, span: LayerSpan, device: torch.device, budget_bytes: int
    ) -> None:
        self.span = span
        self.residency: Residency | None = None
        self.files = FileReader()
        self.peak_bytes = 0
        self.watcher: Watcher | None = None
        self._definition = definition
        self._device = device
        self._budget_bytes = budget_bytes
        self._is_last = span.end == definition.num_layers
        self._blocks = stage_blocks(table, span, definition.num_layers)
        self._rest = table.rest
        self._footprint = Footprint.of(definition, span, table)
        self._binder = Binder(definition.model)
        self._loader = BlockLoader(self.files)
        self._placement = HostPlacement() if device.type == "cpu" else DevicePlacement(device)
        self._sessions: dict[SessionId, Session] = {}
        self._streamer: Streamer | None = None
        self._load_rest(table)

    def reserve(self, num_tokens: int, num_new: int) -> None:
        """Make room for sequences of `num_tokens` in all, of which at most `num_new` come at once.

        Raises BudgetError where the stage's budget does not allow it.
        """
        working_bytes = self._footprint.working_bytes(num_tokens, num_new)
        if self.residency is not None and self.residency.working_bytes >= working_bytes:
            return
        residency = plan_residency(self._blocks, self._budget_bytes, working_bytes)
        if self._streamer is not None:
            self._streamer.close()
        self.residency = residency
        self._streamer = Streamer(residency, self._loader, self._placement)
        by_layer = {block.layer: block for block in residency.blocks if block.layer is not None}
        head = [block for block in residency.blocks if block.layer is None]
        self._doors.lead_to(by_layer, head)

    def forward(self, frames: Sequence[Frame]) -> list[Frame | Logits]:
        """Run one sweep for `frames`, each of another session, and return what each becomes, in order.

        A session begins with its first frame. Raises ModelError for what a model's own code raises.
        """
        assert self.residency is not None, "reserve comes before forward"
        assert self._streamer is not None
        for frame in frames:
            if frame.position == 0 and frame.session not in self._sessions:
                self._sessions[frame.session] = Session(frame.session, self._definition.model, self._device)
        with torch.inference_mode():
            forwards = [Forward(partial(self._run, frame), frame.hidden) for frame in frames]
            sweep(forwards, self.residency.blocks, self._streamer, self._binder, self.watcher)
            results = [self._finish(frame, forward) for frame, forward in zip(frames, forwards, strict=True)]
        self._measure()
        return results

    def release(self, session: SessionId) -> None:
        """Forget a session and its cache; one that was never opened is no error."""
        self._sessions.pop(session, None)

    @property
    def staging_bytes(self) -> int:
        """Host memory that blocks pass through on their way to another device."""
        return 0 if self.residency is None else self.residency.num_slots * self.residency.slot_bytes

    def close(self) -> None:
        """Stop reading and give all memory back."""
        self._sessions.clear()
        if self._streamer is not None:
            self._streamer.close()
        self._loader.close()
        self.files.close()

    def _load_rest(self, table: BlockTable) -> None:
        buffer = Buffer(self._rest.loaded_bytes)
        self._loader.start(self._rest, buffer).wait()
        self._binder.bind(self._rest, block_tensors(self._rest, buffer.bytes.to(self._device)))
        for path, stored in table.lookups.items():
            RowLookup(self._definition.model.get_submodule(path), stored, self._loader, self._device)
        if self._device.type != "cpu":
            for module in self._definition.model.modules():
                module._buffers.update(
                    {name: buffer.to(self._device) for name, buffer in module._buffers.items() if buffer is not None}
                )
        self._doors = Doors(self._definition, self.span)

    def _run(self, frame: Frame) -> object:
        session = self._sessions[frame.session]
        return self._definition.model(**session.inputs(frame))

    def _finish(self, frame: Frame, forward: Forward) -> Frame | Logits:
        session = self._sessions[frame.session]
        if isinstance(forward.error, LayermeshError):
            raise forward.error
        if forward.error is not None:
            raise ModelError(
                f"{type(self._definition.model).__name__} failed at token {frame.position}: {forward.error}"
            ) from forward.error
        ended = isinstance(forward.result, LayerOutput)
        session.finish(frame, CausalLMOutputWithPast(past_key_values=forward.cache) if ended else forward.result)
        session.hold_places(self.span, self._definition)
        if ended:
            return Frame(frame.session, frame.epoch, frame.step, frame.position, frame.token_ids, forward.result)
        return Logits(frame.session, frame.step, forward.result.logits[0, -1].float())

    def _measure(self) -> None:
        assert self.residency is not None
        held = self.residency.resident_bytes + self.residency.num_slots * self.residency.slot_bytes
        caches = sum(session.cache_bytes for session in self._sessions.values())
        self.peak_bytes = max(self.peak_bytes, self._rest.loaded_bytes + held + caches)


def stage_blocks(table: BlockTable, span: LayerSpan, num_layers: int) -> tuple[Block, ...]:
    """Return the blocks that a stage of `span` streams; the last stage also has the head."""
    layers = table.layers[span.start : span.end]
    return (*layers, table.head) if span.end == num_layers and table.head.tensors else layers
