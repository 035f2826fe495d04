"""The stream of blocks past the device: read, stage, release."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from layermesh.shared.model.blocks import Block
from layermesh.shared.residency import LOOK_AHEAD, Residency
from layermesh.worker.buffers import Buffer
from layermesh.worker.loading import BlockLoader, Loading
from layermesh.worker.placement import Placement


@dataclass(slots=True)
class _Present:
    """A block that is in memory or on its way there."""

    buffer: Buffer
    loading: Loading | None


class Streamer:
    """Holds each block while it is needed, and reads the next ones meanwhile.

    Resident blocks are read at their first use and stay. The others share the slots of the residency plan: as soon as one is
    released, its slot takes the next block of the sweep, round and round.
    """

    def __init__(self, residency: Residency, loader: BlockLoader, placement: Placement) -> None:
        self._blocks = residency.blocks
        self._resident = residency.resident
        self._position = {block.name: index for index, block in enumerate(self._blocks)}
        self._loader = loader
        self._placement = placement
        self._present: dict[str, _Present] = {}
        self._free = [Buffer(residency.slot_bytes) for _ in range(residency.num_slots)]

    @contextmanager
    def hold(self, block: Block) -> Iterator[Mapping[str, torch.Tensor]]:
        """Give the tensors of `block` by key, on the device; they are valid until the context ends.

        Raises CheckpointError where its files cannot be read.
        """
        try:
            yield self._acquire(block)
        finally:
            self._release(block)

    def close(self) -> None:
        """Stop reading and let go of all memory."""
        for present in self._present.values():
            if present.loading is not None:
                present.loading.abandon()
        self._present.clear()
        self._free.clear()

    def _acquire(self, block: Block) -> Mapping[str, torch.Tensor]:
        if block.name not in self._present:
            self._make_room(block)
            self._start(block)
        self._look_ahead(block)
        self._settle(block.name)
        return self._placement.tensors(block, self._present[block.name].buffer, stays=block.name in self._resident)

    def _release(self, block: Block) -> None:
        if block.name in self._resident or block.name not in self._present:
            return
        present = self._present.pop(block.name)
        if present.loading is not None:
            present.loading.abandon()
        self._free.append(present.buffer)
        self._look_ahead(block)

    def _settle(self, name: str) -> None:
        """Wait until the block is in its buffer."""
        present = self._present[name]
        if present.loading is not None:
            present.loading.wait()
            present.loading = None

    def _look_ahead(self, block: Block) -> None:
        """Start to read the blocks after `block` for which there is a buffer."""
        position = self._position[block.name]
        for distance in range(1, min(LOOK_AHEAD + 1, len(self._blocks))):
            following = self._blocks[(position + distance) % len(self._blocks)]
            if following.name not in self._present and (following.name in self._resident or self._free):
                self._start(following)

    def _start(self, block: Block) -> None:
        buffer = Buffer(block.loaded_bytes) if block.name in self._resident else self._free.pop()
        self._present[block.name] = _Present(buffer, self._loader.start(block, buffer))

    def _make_room(self, block: Block) -> None:
        """Free a slot for a block that nobody foresaw, from a block that was read too early."""
        if block.name in self._resident or self._free:
            return
        name = next(name for name in self._present if name not in self._resident)
        present = self._present.pop(name)
        if present.loading is not None:
            present.loading.abandon()
        self._free.append(present.buffer)
