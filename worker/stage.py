"""A span of layers loaded on one device: frames in, frames or logits out."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch

from layermesh.shared.errors import LayermeshError, MeshError, ModelError, ResourceError
from layermesh.shared.footprint import Footprint, SequenceSize
from layermesh.shared.frames import Failure, Frame, LayerOutput, Logits, Outcome, SessionId
from layermesh.shared.hidden_states import check_hidden_states
from layermesh.shared.model.blocks import Block, BlockTable
from layermesh.shared.model.definition import ModelDefinition
from layermesh.shared.model.dividing import keeps_state_in_modules
from layermesh.shared.model.embedding_use import needs_embeddings_everywhere
from layermesh.shared.residency import HostRoom, Residency, plan_residency
from layermesh.shared.spans import LayerSpan
from layermesh.shared.units import format_bytes
from layermesh.worker.binding import Binder
from layermesh.worker.buffers import Buffer, block_tensors
from layermesh.worker.cache_check import CacheCheck
from layermesh.worker.decode_step import DecodeStep, make_decode_step
from layermesh.worker.doors import Doors, Forward
from layermesh.worker.files import FileReader
from layermesh.worker.host_layers import HostLayers
from layermesh.worker.loading import BlockLoader
from layermesh.worker.lookups import RowLookup, leave_blank
from layermesh.worker.meetings import Meetings
from layermesh.worker.out_of_memory import OUT_OF_MEMORY, is_out_of_memory, minding_memory
from layermesh.worker.placement import bus_rate, place_on
from layermesh.worker.sessions import Session
from layermesh.worker.streaming import Remains, Streamer
from layermesh.worker.sweep import sweep
from layermesh.worker.turns import Turns

Watcher = Callable[[Block], None]

_UNPINNED = (
    "the system lets no more memory be pinned: {} from which the card is fed are ordinary memory, and copies from there are "
    "slower. A smaller --host-memory may help."
)


class Stage:
    """Runs the layers of `span` for the sessions that are opened on it, within `budget_bytes` of the device's memory.

    `budget_flag` is what the user would say to allow more; `host_budget_bytes` is for a device with memory of its own. The
    definition becomes the stage's own: doors are hung into it. The last stage also runs what comes behind the layers and
    returns logits, unless `has_head` says that another does; with an empty span behind the last layer it does nothing else.
    `watcher`, where set, is told of each block when its turn comes. Raises ValueError where there is nothing to run.
    """

    def __init__(
        self,
        definition: ModelDefinition,
        table: BlockTable,
        span: LayerSpan,
        device: torch.device,
        budget_bytes: int,
        budget_flag: str = "--host-memory",
        host_budget_bytes: int | None = None,
        *,
        has_head: bool = True,
    ) -> None:
        self.span = span
        self.has_head = has_head and span.end == definition.num_layers
        if not len(span) and not self.has_head:
            raise ValueError(f"a stage of layers {span} without the head would have nothing to run")
        self.residency: Residency | None = None
        self.files = FileReader()
        self._peak_bytes = 0
        self.watcher: Watcher | None = None
        self._decode_step: DecodeStep | None = None
        self._is_checked = not len(span) or keeps_state_in_modules(definition.model)
        self._definition = definition
        config = definition.model.config
        self._hidden_size = int(getattr(config.get_text_config(decoder=True), "hidden_size", None) or 0)  # 0: it does not say
        self._model_type: str = config.model_type
        self.device = device
        self._budget_bytes = budget_bytes
        self._budget_flag = budget_flag
        self._host_budget_bytes = host_budget_bytes
        self._blocks = table.blocks_of(span, has_head=self.has_head)
        self._rest = table.rest
        self._footprint = Footprint.of(definition, span, table, device.type)
        self._binder = Binder(definition.model)
        self._loader = BlockLoader(self.files)
        self._sessions: dict[SessionId, Session] = {}
        self._reserved: dict[SessionId, SequenceSize] = {}
        self._streamer: Streamer | None = None
        try:
            with minding_memory():
                self.host_layers = HostLayers(definition, self._blocks, device, bus_rate(device, budget_bytes))
                self._load_rest(table)
        except BaseException:
            self.close()
            raise

    def reserve(self, session: SessionId, size: SequenceSize) -> None:
        """Make room for a session of `size` beside those there are; `release` gives it back.

        What is resident stays so as far as the budget allows. Raises BudgetError where it does not allow the session.
        """
        residency = self.plan(*(other for name, other in self._reserved.items() if name != session), size)
        if self.residency is None or self.residency.working_bytes < residency.working_bytes:
            with minding_memory():
                self._lay_out(residency)
        self._reserved[session] = size

    def plan(self, *sizes: SequenceSize) -> Residency:
        """Return where blocks would live with sessions of these sizes aboard. Raises BudgetError."""
        footprint, host_budget_bytes = self._footprint, self._host_budget_bytes
        host = None
        if host_budget_bytes is not None:
            host = HostRoom(host_budget_bytes, footprint.reading_bytes, footprint.host_working_bytes(*sizes))
        return plan_residency(self._blocks, self._budget_bytes, footprint.working_bytes(*sizes), self._budget_flag, host)

    def forward(self, frames: Sequence[Frame], *, are_checked: bool = False) -> list[Outcome]:
        """Run one sweep for `frames`, each of another session, and return what each becomes, in order.

        A session begins with its first frame. One in which the model's own code fails becomes a Failure and leaves the others
        as they are. Where frames `are_checked`, `check` has let each of them pass. Raises MeshError for a frame that does not
        continue its session, CheckpointError where a block cannot be read; the sessions of a sweep that was interrupted are
        forgotten.
        """
        assert self.residency is not None, "reserve comes before forward"
        assert self._streamer is not None
        self._admit(frames, are_checked=are_checked)
        on_host = self.host_layers.choose(self.residency, sum(len(frame.token_ids) for frame in frames))
        self._streamer.host_computed = on_host
        try:
            if len(frames) == 1 and (stepped := self._step(frames[0])) is not None:
                return [stepped]
            with torch.inference_mode():
                entries = [frame.hidden and frame.hidden.to(self.device) for frame in frames]
                shared = self.device.type == "cpu" and len(frames) > 1
                forwards = [
                    Forward(partial(self._run, frame), entry, on_host, takes_turns=shared)
                    for frame, entry in zip(frames, entries, strict=True)
                ]
                self._sweep(forwards, frames[0].hidden)
                outcomes = [self._finish(frame, forward) for frame, forward in zip(frames, forwards, strict=True)]
        except BaseException as error:  # they are somewhere between two tokens, from where they cannot go on
            for frame in frames:
                self.release(frame.session)
            if is_out_of_memory(error):
                raise ResourceError(OUT_OF_MEMORY) from error
            raise
        return outcomes

    def trial(self, frame: Frame, blocks: Sequence[Block], streamer: Streamer) -> None:
        """Run `frame` through `blocks` alone, which `streamer` brings: the first layer and some others of this stage.

        What becomes of it means nothing; the time it takes does. Raises what the model's own code does.
        """
        self._admit([frame])
        with torch.inference_mode():
            entry = frame.hidden and frame.hidden.to(self.device)
            forward = Forward(partial(self._run, frame), entry, only={block.name for block in blocks})
            sweep([forward], blocks, streamer, self._binder)
            outcome = self._finish(frame, forward)
        if isinstance(outcome, Failure):
            raise outcome.error

    @property
    def trial_inputs(self) -> tuple[LayerOutput | None, ...]:
        """What a trial may hand to the first layer: nothing, or hidden states in one of the forms that families use."""
        if self.span.start == 0:
            return (None,)
        hidden = torch.zeros(1, 1, self._hidden_size or 1, dtype=self._definition.model.dtype)
        return (LayerOutput((hidden,), bare=True), LayerOutput((hidden,), bare=False))

    def allow(self, budget_bytes: int) -> None:
        """Change how much memory the stage may take from the next session on."""
        self._budget_bytes = budget_bytes

    def release(self, session: SessionId) -> None:
        """Forget a session and its cache; one that was never opened is no error."""
        if session in self._sessions:
            self._measure()
        self._sessions.pop(session, None)
        self._reserved.pop(session, None)

    @property
    def peak_bytes(self) -> int:
        """The most bytes that blocks and caches have taken of the device's memory."""
        self._measure()
        return self._peak_bytes

    @property
    def weight_form(self) -> str:
        """What most weights are multiplied as: "bfloat16", "int4" and so on."""
        return self._definition.weight_form

    @property
    def streams(self) -> bool:
        """Whether it reads blocks in every sweep."""
        return self.residency is not None and self.residency.streamed_bytes > 0

    @property
    def staging_bytes(self) -> int:
        """Host memory that blocks pass through on their way to another device."""
        return 0 if self.residency is None else self.residency.host_bytes

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know about how it goes."""
        num_bytes = 0 if self._streamer is None else self._streamer.num_unpinned_bytes
        return (_UNPINNED.format(format_bytes(num_bytes)),) if num_bytes else ()

    def unbind(self, blocks: Iterable[Block]) -> None:
        """Let modules go of `blocks`, so that their memory goes too."""
        for block in blocks:
            self._binder.unbind(block)

    def close(self) -> None:
        """Stop reading and give all memory back."""
        self._sessions.clear()
        self._reserved.clear()
        self.unbind(() if self.residency is None else self.residency.blocks)
        self._binder.unbind(self._rest)
        try:
            if self._streamer is not None:
                self._streamer.close()
        finally:
            self._loader.close()
            self.files.close()

    def _lay_out(self, residency: Residency) -> None:
        self._measure()
        if self._streamer is None or self.residency is None or not residency.is_laid_out_as(self.residency):
            remains = self._close_streamer(residency)
            self._streamer = Streamer(residency, self._loader, place_on(self.device, residency), remains)
            self._doors.lead_to(residency.blocks)
            self._loader.ahead.follow(residency.blocks)
        self.residency = residency

    def _close_streamer(self, residency: Residency) -> Remains | None:
        """Make room for another layout, and return what of the present one stays in place."""
        streamer, self._streamer = self._streamer, None
        if streamer is None:
            return None
        if self.residency is not None:
            self.unbind(block for block in self.residency.blocks if block.name not in residency.resident)
        self.residency = None
        return streamer.hand_over(residency)

    def _load_rest(self, table: BlockTable) -> None:
        embeds = self.span.start == 0 or needs_embeddings_everywhere(self._definition)
        buffer = Buffer(self._rest.loaded_bytes)
        if embeds:
            self._loader.ahead.expect(stored.path for stored in table.lookups.values())
        self._loader.start(self._rest, buffer).wait()
        self._binder.bind(self._rest, block_tensors(self._rest, buffer.bytes.to(self.device)))
        for path, stored in table.lookups.items():
            module = self._definition.model.get_submodule(path)
            if embeds:
                RowLookup(module, stored, self._loader, self.device)
            else:
                leave_blank(module, self.device)
        if self.device.type == "cpu":
            Turns(self._definition)
            Meetings(self._definition)
        else:
            for module in self._definition.model.modules():
                computed = {name: buffer for name, buffer in module._buffers.items() if buffer is not None}
                module._buffers.update(  # those of the blocks come with them
                    {name: buffer.to(self.device) for name, buffer in computed.items() if not buffer.is_meta}
                )
        self._doors = Doors(self._definition, self.span, self.host_layers, has_head=self.has_head)
        if self.device.type == "cpu":
            self._decode_step = make_decode_step(self._definition, self.span, self._binder, self._doors, has_head=self.has_head)

    def position(self, session: SessionId) -> int:
        """Return how many tokens of a session have passed; 0 where it is not known."""
        return self._sessions[session].position if session in self._sessions else 0

    def check(self, frame: Frame) -> None:
        """Raise MeshError for a frame that does not continue its session, or with what cannot be hidden states."""
        position = self.position(frame.session)
        if frame.position != position:
            raise MeshError(
                f"session {frame.session} is at position {position} here and was sent tokens for {frame.position}: "
                "a frame was lost or came twice. Start the session again."
            )
        if (frame.hidden is None) != (self.span.start == 0):
            raise MeshError(f"layers {self.span} take hidden states from the stage before, and only from there.")
        if frame.hidden is not None:
            check_hidden_states(frame.hidden, len(frame.token_ids), self._hidden_size, self._model_type)

    def _admit(self, frames: Sequence[Frame], *, are_checked: bool = False) -> None:
        """Begin the sessions that are new, after a check that each frame comes when it should, unless that was seen before."""
        if len({frame.session for frame in frames}) < len(frames):
            raise MeshError("a sweep carries one frame of each session, and was given two of the same.")
        for frame in () if are_checked else frames:
            self.check(frame)
        for frame in frames:
            if frame.session not in self._sessions:
                size = self._reserved.get(frame.session)
                num_tokens = len(frame.token_ids) if size is None else size.num_tokens
                self._sessions[frame.session] = Session(frame.session, self._definition, self.span, self.device, num_tokens)

    def _run(self, frame: Frame) -> object:
        session = self._sessions[frame.session]
        return self._definition.model(**session.inputs(frame))

    def _step(self, frame: Frame) -> Outcome | None:
        """Run a frame without the model's own forward; None where that cannot be."""
        assert self.residency is not None
        if self._decode_step is None or self.streams:
            return None
        try:
            session = self._sessions[frame.session]
            made = self._decode_step.run(session, frame, self.residency.blocks, self.watcher or _nobody)
        except Exception as error:
            return self._fail(frame, error)
        if made is None:
            return None
        return self._logits(frame, made) if self.has_head else _handed_on(frame, LayerOutput((made,), bare=True))

    def _sweep(self, forwards: Sequence[Forward], hidden: LayerOutput | None) -> None:
        """Bring every block to `forwards`; the first time also to a check that layers find what they cached."""
        assert self.residency is not None
        assert self._streamer is not None
        blocks = self.residency.blocks
        if self._is_checked:
            sweep(forwards, blocks, self._streamer, self._binder, self.watcher)
            return
        check = CacheCheck(self._definition, self.span, self.device, blocks, hidden)
        sweep([check.forward(), *forwards], blocks, self._streamer, self._binder, self.watcher)
        check.raise_disagreement()
        self._is_checked = True

    def _finish(self, frame: Frame, forward: Forward) -> Outcome:
        if forward.failure is not None:
            return self._fail(frame, forward.failure)
        session = self._sessions[frame.session]
        ended = isinstance(forward.result, LayerOutput)
        session.finish(frame, forward.cache if ended else forward.result)
        return _handed_on(frame, forward.result) if ended else self._logits(frame, forward.result.logits)

    def _logits(self, frame: Frame, logits: torch.Tensor) -> Logits:
        return Logits(frame.session, frame.step, logits[0, -1].float())

    def _fail(self, frame: Frame, error: Exception) -> Failure:
        self.release(frame.session)
        return Failure(frame.session, frame.step, self._explain(frame, error))

    def _explain(self, frame: Frame, error: Exception) -> LayermeshError:
        if isinstance(error, LayermeshError):
            return error
        ours: LayermeshError = ModelError(f"{type(self._definition.model).__name__} failed at token {frame.position}: {error}")
        if is_out_of_memory(error):
            ours = ResourceError(OUT_OF_MEMORY)
        ours.__cause__ = error
        return ours

    def _measure(self) -> None:
        """Note what is taken now: caches only grow until their session is released."""
        if self.residency is None:
            return
        held = self.residency.resident_bytes + self.residency.num_slots * self.residency.slot_bytes
        caches = sum(session.cache_bytes for session in self._sessions.values())
        self._peak_bytes = max(self._peak_bytes, self._rest.loaded_bytes + held + caches)


def _handed_on(frame: Frame, output: LayerOutput) -> Frame:
    return Frame(frame.session, frame.epoch, frame.step, frame.position, frame.token_ids, output)


def _nobody(_block: Block) -> None:
    """Watch nothing."""
