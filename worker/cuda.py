"""A CUDA device: pinned host memory, slots on the card, and a stream of copies between them."""

import torch

from layermesh.shared.model.blocks import Block
from layermesh.worker.buffers import BlockMemory, Buffer, LoadedTensors


class PinnedBuffer(Buffer):
    """Host memory that the card copies from on its own.

    Registered in place: torch's own pinned allocations take the next power of two.
    """

    def __init__(self, num_bytes: int) -> None:
        super().__init__(num_bytes)
        self._copied = torch.cuda.Event()
        torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(self.bytes.data_ptr(), self.bytes.numel(), 0))
        self._registered = True

    def copy_to(self, target: torch.Tensor, stream: torch.cuda.Stream) -> torch.cuda.Event:
        """Copy what lies here to `target` on `stream` and return the event that tells when it is there."""
        target.copy_(self.bytes[: target.numel()], non_blocking=True)
        self._copied.record(stream)
        return self._copied

    def wait_until_free(self) -> None:
        """Wait for the copy under way; other Python threads run meanwhile."""
        self._copied.synchronize()

    def __del__(self) -> None:
        if getattr(self, "_registered", False):
            self._copied.synchronize()
            torch.cuda.cudart().cudaHostUnregister(self.bytes.data_ptr())


class DevicePlacement:
    """Copies blocks to the card on a stream of their own, into slots that take turns.

    Nothing here waits for the card: its streams wait for each other by events, so that Python runs ahead, the bus is busy
    from one block to the next, and a host buffer is free again once its copy is through.
    """

    def __init__(self, device: torch.device, num_slots: int, slot_bytes: int) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device)
        self._slots = [_DeviceSlot(slot_bytes, device) for _ in range(num_slots)]
        self._lent: dict[str, _DeviceSlot] = {}

    def buffer(self, num_bytes: int) -> Buffer:
        """Return pinned memory."""
        return PinnedBuffer(num_bytes)

    def keep(self, block: Block, buffer: Buffer) -> LoadedTensors:
        """Copy the block to memory of its own."""
        return self._copy(block, buffer, _DeviceSlot(block.loaded_bytes, self._device))

    def lend(self, block: Block, buffer: Buffer) -> LoadedTensors:
        """Copy the block to the slot that has been free for longest."""
        slot = self._slots.pop(0)
        self._slots.append(slot)
        self._lent[block.name] = slot
        return self._copy(block, buffer, slot)

    def take_back(self, block: Block) -> None:
        """Let the next copy into the block's slot wait for what has been launched so far."""
        slot = self._lent.pop(block.name, None)
        if slot is not None:
            slot.released.record(torch.cuda.current_stream(self._device))

    def close(self) -> None:
        """Let go of the slots, once the card is done with them."""
        torch.cuda.synchronize(self._device)
        self._slots.clear()
        self._lent.clear()

    def _copy(self, block: Block, buffer: Buffer, slot: "_DeviceSlot") -> LoadedTensors:
        assert isinstance(buffer, PinnedBuffer)
        with torch.cuda.stream(self._copies):
            self._copies.wait_event(slot.released)
            copied = buffer.copy_to(slot.bytes[: block.loaded_bytes], self._copies)
        torch.cuda.current_stream(self._device).wait_event(copied)
        return slot.tensors(block)


class _DeviceSlot(BlockMemory):
    """Memory on the card for one block at a time; `released` tells when its last use is over."""

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        super().__init__(torch.empty(num_bytes, dtype=torch.uint8, device=device))
        self.released = torch.cuda.Event()
