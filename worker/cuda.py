"""Blocks on their way to a CUDA card: pinned host memory, slots on the card, and a stream of copies between them."""

import weakref
from contextlib import suppress
from typing import Final

import torch

from layermesh.shared.model.blocks import Block
from layermesh.worker.buffers import BlockMemory, Buffer, LoadedTensors
from layermesh.worker.card import Card, Event, Stream

COPIED_BYTES: Final = 8 << 20  # one copy; between two of them the small ones of layers computed on the host have their turn


class CardBuffer(Buffer):
    """Host memory that a card copies from: on its own where the system lets memory be pinned, else while Python waits."""

    def __init__(self, num_bytes: int, card: Card) -> None:
        super().__init__(num_bytes)
        self._card = card
        self._copied = card.new_event()
        unpin = weakref.finalize(self, _unpin, card, self.bytes, self._copied)  # first, so that no interruption comes between
        self.is_slow = not card.pin(self.bytes)
        if self.is_slow:
            unpin.detach()

    def copy_to(self, target: torch.Tensor, stream: Stream) -> None:
        """Copy what lies here to `target` as part of `stream`."""
        try:
            for start in range(0, len(target), COPIED_BYTES):
                end = min(start + COPIED_BYTES, len(target))
                self._card.copy(target[start:end], self.bytes[start:end], stream, wait=self.is_slow)
        finally:  # an interruption does not stop a copy
            self._copied.record(stream)

    def wait_until_free(self) -> None:
        """Wait for the copy under way; other Python threads run meanwhile."""
        self._card.wait_for(self._copied)


class DevicePlacement:
    """Copies blocks to the card on a stream of their own, into slots that take turns.

    Nothing here waits for the card: its streams wait for each other by events, so that Python runs ahead, the bus is busy
    from one block to the next, and a host buffer is free again once its copy is through.
    """

    keeps_apart = True

    def __init__(self, card: Card, num_slots: int, slot_bytes: int) -> None:
        self._card = card
        self._copies = card.new_stream()
        self._slots = [_DeviceSlot(slot_bytes, card) for _ in range(num_slots)]  # the last used comes last
        self._lent: dict[str, _DeviceSlot] = {}

    def buffer(self, num_bytes: int) -> Buffer:
        """Return pinned memory, or ordinary memory where there is no more to pin."""
        return CardBuffer(num_bytes, self._card)

    def keep(self, block: Block, buffer: BlockMemory) -> LoadedTensors:
        """Copy the block to memory of its own."""
        slot = _DeviceSlot(block.loaded_bytes, self._card)
        try:
            self._fill(slot, block, buffer)
            return self._hand_out(slot, block)
        except BaseException:
            self._card.finish()  # before the memory goes to somebody else
            raise

    def prepare(self, block: Block, buffer: BlockMemory) -> None:
        """Set off the block's copy, to the slot that has been free for longest, if there is one."""
        free = self._free
        if block.name in self._lent or not free:
            return
        self._slots = [*(slot for slot in self._slots if slot is not free[0]), free[0]]
        self._fill(free[0], block, buffer)
        self._lent[block.name] = free[0]

    def lend(self, block: Block, buffer: BlockMemory) -> LoadedTensors:
        """Let kernels use the block's slot once its copy is there."""
        if block.name not in self._lent and not self._free:
            self._take_back(next(reversed(self._lent)))  # prepared for a block that does not come next after all
        self.prepare(block, buffer)
        return self._hand_out(self._lent[block.name], block)

    def take_back(self, block: Block) -> None:
        """Let the next copy into the block's slot wait for what has been launched so far."""
        if block.name in self._lent:
            self._take_back(block.name)

    def close(self) -> None:
        """Let go of the slots, once the card is done with them."""
        try:
            self._card.finish()
        finally:
            self._slots.clear()
            self._lent.clear()
            self._card.give_back()

    @property
    def _free(self) -> list["_DeviceSlot"]:
        """The slots that no block is in; counted anew each time, so that an interruption can lose none."""
        taken = {id(slot) for slot in self._lent.values()}
        return [slot for slot in self._slots if id(slot) not in taken]

    def _take_back(self, name: str) -> None:
        self._lent[name].released.record(self._card.current_stream())
        del self._lent[name]

    def _fill(self, slot: "_DeviceSlot", block: Block, buffer: BlockMemory) -> None:
        assert isinstance(buffer, CardBuffer)
        self._copies.wait_event(slot.released)
        buffer.copy_to(slot.bytes[: block.loaded_bytes], self._copies)
        slot.filled.record(self._copies)

    def _hand_out(self, slot: "_DeviceSlot", block: Block) -> LoadedTensors:
        self._card.current_stream().wait_event(slot.filled)
        return slot.tensors(block)


class _DeviceSlot(BlockMemory):
    """Memory on the card for one block at a time: when its copy is there, and when its last use is over."""

    def __init__(self, num_bytes: int, card: Card) -> None:
        super().__init__(card.allocate(num_bytes))
        self.filled: Event = card.new_event()
        self.released: Event = card.new_event()
        self.released.record(card.current_stream())  # whose earlier kernels may still use what lay here before


def _unpin(card: Card, memory: torch.Tensor, copied: Event) -> None:
    with suppress(RuntimeError):  # a card that has failed has said so before
        card.wait_for(copied)
        card.unpin(memory)
