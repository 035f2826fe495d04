"""The stream of blocks past the device: read, stage, release."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from layermesh.shared.model.blocks import PAGE_BYTES, Block
from layermesh.shared.residency import LOOK_AHEAD, Residency
from layermesh.worker.buffers import BlockMemory, Buffer, LoadedTensors
from layermesh.worker.loading import BlockLoader, Loading
from layermesh.worker.placement import Placement


@dataclass(slots=True)
class _Present:
    """A block in its memory, or on its way there: memory of its own, or in a slot, up to its byte `end`."""

    memory: BlockMemory
    loading: Loading | None
    slot: int | None = None
    end: int = 0

    @property
    def is_read(self) -> bool:
        """Whether all of it is there."""
        return self.loading is None or self.loading.is_done


@dataclass(frozen=True, slots=True)
class Remains:
    """What a streamer leaves to the one after it: tensors placed on the device, buffers of blocks that stay on the host."""

    placed: Mapping[str, LoadedTensors] = field(default_factory=dict)
    on_host: Mapping[str, BlockMemory] = field(default_factory=dict)


class Streamer:
    """Holds each block while it is needed, and reads the next ones meanwhile.

    Blocks resident on the device are read at their first use and stay there; those resident on the host stay in buffers of
    their own, from where the placement lends them, or are computed with right there if they are among `host_computed`. The
    others share the slots of the residency plan: as soon as one is released, its slot takes the next block of the sweep, round
    and round; small ones that follow each other lie in a slot together. `remains` are an earlier streamer's.
    """

    def __init__(
        self,
        residency: Residency,
        loader: BlockLoader,
        placement: Placement,
        remains: Remains | None = None,
    ) -> None:
        remains = remains or Remains()
        self.host_computed: frozenset[str] = frozenset()
        self._blocks = residency.blocks
        self._resident = residency.resident
        self._on_host = residency.on_host
        self._position = {block.name: index for index, block in enumerate(self._blocks)}
        self._loader = loader
        self._placement = placement
        self._present = {name: _Present(buffer, None) for name, buffer in remains.on_host.items()}
        self._placed = dict(remains.placed)  # of blocks resident on the device
        self._slot_bytes = residency.buffer_bytes if placement.keeps_apart else residency.slot_bytes
        self._shares_slots = not placement.keeps_apart  # there a slot is copied from, and free only once that is done
        num_slots = 1 + LOOK_AHEAD if placement.keeps_apart else residency.num_slots
        self._slots = [] if self.is_settled else [placement.buffer(self._slot_bytes) for _ in range(num_slots)]

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

    @property
    def num_unpinned_bytes(self) -> int:
        """Bytes of buffers that should have been pinned and could not be."""
        buffers = {id(buffer): buffer for buffer in (*self._slots, *(present.memory for present in self._present.values()))}
        return sum(buffer.num_bytes for buffer in buffers.values() if isinstance(buffer, Buffer) and buffer.is_slow)

    def hand_over(self, residency: Residency) -> Remains:
        """Close it, and return what of its blocks stays where it is by `residency`, for a streamer that comes after it.

        That one is made afterwards: there may not be memory for the slots of both.
        """
        placed = {name: tensors for name, tensors in self._placed.items() if name in residency.resident}
        read = {name: present.memory for name, present in self._present.items() if present.loading is None}
        kept = {name: buffer for name, buffer in read.items() if name in self._on_host & residency.on_host}
        self.close()
        return Remains(placed, kept)

    def close(self) -> None:
        """Stop reading and let go of all memory."""
        for name in list(self._present):
            self._forget(name)
        self._placed.clear()
        try:
            self._placement.close()
        finally:
            self._slots.clear()

    def _place_for(self, block: Block) -> tuple[int, int] | None:
        """Return a slot with room for the block, and from which byte on; None where there is none.

        It lies behind those that came before it, or in a slot that no block is in. What is taken is counted anew each time, so
        that an interruption can lose nothing.
        """
        ends: dict[int, int] = {}
        for present in self._present.values():
            if present.slot is not None:
                ends[present.slot] = max(present.end, ends.get(present.slot, 0))
        if self._shares_slots:
            for slot, end in reversed(ends.items()):
                start = -(-end // PAGE_BYTES) * PAGE_BYTES
                if start + block.loaded_bytes <= self._slot_bytes:
                    return slot, start
        return next(((slot, 0) for slot in range(len(self._slots)) if slot not in ends), None)

    def _acquire(self, block: Block) -> LoadedTensors:
        if block.name not in self._present and block.name not in self._placed:
            self._make_room(block)
            self._start(block)
        self._look_ahead(block)
        tensors = self._place(block)
        self._prepare_next(block)
        return tensors

    def _place(self, block: Block) -> LoadedTensors:
        """Wait until the block is in its buffer and return its tensors on the device."""
        if block.name in self._placed:
            return self._placed[block.name]
        present = self._present[block.name]
        if present.loading is not None:
            present.loading.wait()
            present.loading = None
        if block.name in self.host_computed:
            return present.memory.tensors(block)
        if block.name not in self._resident:
            return self._placement.lend(block, present.memory)
        self._placed[block.name] = self._placement.keep(block, present.memory)
        del self._present[block.name]
        if self.is_settled:
            self._slots.clear()
        return self._placed[block.name]

    def _prepare_next(self, block: Block) -> None:
        """Have the next block that is lent set out for the device, if it has been read, while this one computes."""
        if self.is_settled or not self._placement.keeps_apart:
            return
        position = self._position[block.name]
        others = (*self._blocks[position + 1 :], *self._blocks[:position])
        for following in others:
            if following.name not in self._placed and following.name not in self.host_computed:
                present = self._present.get(following.name)
                if present is not None and present.is_read and following.name not in self._resident:
                    self._placement.prepare(following, present.memory)
                return

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
        """Start to read what comes after `block`: the next blocks, and of those that stream all that there is room for."""
        if self.is_settled:
            return
        position = self._position[block.name]
        for distance in range(1, len(self._blocks)):
            following = self._blocks[(position + distance) % len(self._blocks)]
            if following.name in self._present or following.name in self._placed:
                continue
            if self._has_own_buffer(following):
                if distance <= LOOK_AHEAD:
                    self._start(following)
            elif (place := self._place_for(following)) is not None:
                self._start_in_slot(following, place)
            else:
                return

    def _start(self, block: Block) -> None:
        if self._has_own_buffer(block):
            memory = self._placement.buffer(block.loaded_bytes)
            self._present[block.name] = _Present(memory, self._loader.start(block, memory))
            return
        place = self._place_for(block)
        assert place is not None
        self._start_in_slot(block, place)

    def _start_in_slot(self, block: Block, place: tuple[int, int]) -> None:
        slot, start = place
        memory = self._slots[slot].part(start)
        self._present[block.name] = _Present(memory, self._loader.start(block, memory), slot, start + block.loaded_bytes)

    def _make_room(self, block: Block) -> None:
        """Make room in a slot for a block that nobody foresaw, at the cost of those that were read furthest ahead."""
        while not self._has_own_buffer(block) and self._place_for(block) is None:
            self._forget([name for name, present in self._present.items() if present.slot is not None][-1])

    def _has_own_buffer(self, block: Block) -> bool:
        passes_through = self._placement.keeps_apart and block.loaded_bytes <= self._slot_bytes
        return block.name in self._on_host or (block.name in self._resident and not passes_through)

    @property
    def is_settled(self) -> bool:
        """Whether all blocks are on the device and stay there."""
        return len(self._placed) == len(self._blocks)
