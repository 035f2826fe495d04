"""The stream of blocks past the device: read, stage, release."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from layermesh.shared.model.blocks import Block
from layermesh.shared.residency import LOOK_AHEAD, Residency
from layermesh.worker.buffers import Buffer, LoadedTensors
from layermesh.worker.loading import BlockLoader, Loading
from layermesh.worker.placement import Placement


@dataclass(slots=True)
class _Present:
    """A block in its buffer, or on its way there."""

    buffer: Buffer
    loading: Loading | None


class Streamer:
    """Holds each block while it is needed, and reads the next ones meanwhile.

    Blocks resident on the device are read at their first use and stay there; those resident on the host stay in buffers of
    their own, from where the placement lends them. The others share the slots of the residency plan: as soon as one is
    released, its slot takes the next block of the sweep, round and round.
    """

    def __init__(self, residency: Residency, loader: BlockLoader, placement: Placement) -> None:
        self._blocks = residency.blocks
        self._resident = residency.resident
        self._on_host = residency.on_host
        self._position = {block.name: index for index, block in enumerate(self._blocks)}
        self._loader = loader
        self._placement = placement
        self._present: dict[str, _Present] = {}
        self._placed: dict[str, LoadedTensors] = {}  # of blocks resident on the device
        self._slots = [placement.buffer(residency.slot_bytes) for _ in range(residency.num_slots)]

    @contextmanager
    def hold(self, block: Block) -> Iterator[LoadedTensors]:
        """Give the tensors of `block` by key, on the device; they are valid until the context ends.

        Raises CheckpointError where its files cannot be read.
        """
        try:
            yield self._acquire(block)
        finally:
            self._release(block)

    def stays(self, block: Block) -> bool:
        """Whether the tensors that `hold` gives of `block` are valid for as long as the streamer is."""
        return block.name in self._placed

    def succeed(self, earlier: "Streamer") -> None:
        """Take over what `earlier` has placed and what is resident here too, and close it."""
        self._placed |= {name: tensors for name, tensors in earlier._placed.items() if name in self._resident}
        earlier.close()

    def close(self) -> None:
        """Stop reading and let go of all memory."""
        for name in list(self._present):
            self._forget(name)
        self._placement.close()
        self._placed.clear()
        self._slots.clear()

    @property
    def _free(self) -> list[Buffer]:
        """The slots that no block is in; counted anew each time, so that an interruption can lose none."""
        taken = {id(present.buffer) for present in self._present.values()}
        return [slot for slot in self._slots if id(slot) not in taken]

    def _acquire(self, block: Block) -> LoadedTensors:
        if block.name not in self._present and block.name not in self._placed:
            self._make_room(block)
            self._start(block)
        self._look_ahead(block)
        return self._place(block)

    def _place(self, block: Block) -> LoadedTensors:
        """Wait until the block is in its buffer and return its tensors on the device."""
        if block.name in self._placed:
            return self._placed[block.name]
        present = self._present[block.name]
        if present.loading is not None:
            present.loading.wait()
            present.loading = None
        if block.name not in self._resident:
            return self._placement.lend(block, present.buffer)
        self._placed[block.name] = self._placement.keep(block, present.buffer)
        del self._present[block.name]
        return self._placed[block.name]

    def _release(self, block: Block) -> None:
        """Let go of the block: one that streams, or that could not be read and may be tried again."""
        if block.name in self._present:
            self._placement.take_back(block)
            if block.name not in self._on_host or self._present[block.name].loading is not None:
                self._forget(block.name)
        self._look_ahead(block)

    def _forget(self, name: str) -> None:
        """Give the buffer of a block to the next one, or back to the system if it was the block's own."""
        loading = self._present[name].loading
        if loading is not None:
            loading.abandon()
        del self._present[name]

    def _look_ahead(self, block: Block) -> None:
        """Start to read what comes after `block`: the next blocks, and for every free slot the next one that streams."""
        if len(self._placed) == len(self._blocks):
            return
        position = self._position[block.name]
        for distance in range(1, len(self._blocks)):
            if distance > LOOK_AHEAD and not self._free:
                return
            following = self._blocks[(position + distance) % len(self._blocks)]
            there_is_room = distance <= LOOK_AHEAD if self._has_own_buffer(following) else bool(self._free)
            if there_is_room and following.name not in self._present and following.name not in self._placed:
                self._start(following)

    def _start(self, block: Block) -> None:
        buffer = self._placement.buffer(block.loaded_bytes) if self._has_own_buffer(block) else self._free[-1]
        self._present[block.name] = _Present(buffer, self._loader.start(block, buffer))

    def _make_room(self, block: Block) -> None:
        """Free a slot for a block that nobody foresaw, from the block that was read furthest ahead."""
        if not self._has_own_buffer(block) and not self._free:
            self._forget([name for name, present in self._present.items() if present.buffer in self._slots][-1])

    def _has_own_buffer(self, block: Block) -> bool:
        return block.name in self._resident or block.name in self._on_host
