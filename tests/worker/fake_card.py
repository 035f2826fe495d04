"""A card that computes nothing, copies at once, and finds out whether anybody relied on that.

Every stream and every thread has a clock of all others' work that it is known to come after: events carry clocks from one to
another, as on a real card. Two uses of the same memory, one of them a write, of which neither is known to come after the
other, are a race.
"""

import threading
import weakref

import numpy as np
import torch

from layermesh.worker.cuda import DevicePlacement
from layermesh.worker.files import FileReader

Clock = dict[str, int]


def merge(clock: Clock, other: Clock) -> None:
    for name, count in other.items():
        clock[name] = max(clock.get(name, 0), count)


class FakeStream:
    def __init__(self, name: str):
        self.name = name
        self.clock: Clock = {}

    def wait_event(self, event: "FakeEvent") -> None:
        merge(self.clock, event.clock)


class FakeEvent:
    def __init__(self, card: "FakeCard"):
        self.card = card
        self.clock: Clock = {}

    def record(self, stream: FakeStream) -> None:
        merge(stream.clock, self.card.thread_clock())
        self.clock = dict(stream.clock)


class Region:
    """A piece of memory, who wrote it last and who has read it since."""

    def __init__(self, memory: torch.Tensor):
        self.start, self.end = memory.data_ptr(), memory.data_ptr() + memory.nbytes
        self.writes: list[tuple[str, int]] = []  # of parts of it, side by side
        self.reads: list[tuple[str, int]] = []


class FakeCard:
    """`pins` are the bytes that may be pinned in all; `fails_after` interrupts that copy."""

    def __init__(self, pins: int = 1 << 40, fails_after: int = 0):
        self.races: list[str] = []
        self.allocated_bytes = self.peak_bytes = self.pinned_bytes = self.num_pins = self.num_waits = 0
        self.copies: list[tuple[int, int]] = []
        self._left_to_pin = pins
        self._fails_after = fails_after
        self._lock = threading.RLock()
        self._regions: list[Region] = []
        self._clocks: dict[str, Clock] = {}
        self._kernels = FakeStream("kernels")
        self._num_streams = 0

    def allocate(self, num_bytes: int) -> torch.Tensor:
        memory = torch.full((num_bytes,), 255, dtype=torch.uint8)
        self.allocated_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.allocated_bytes)
        weakref.finalize(memory.untyped_storage(), self._free, num_bytes)
        self._add(memory)
        self.compute(memory)  # a kernel that used what lay here before and may not be over
        return memory

    def new_stream(self) -> FakeStream:
        self._num_streams += 1
        return FakeStream(f"copies {self._num_streams}")

    def new_event(self) -> FakeEvent:
        return FakeEvent(self)

    def current_stream(self) -> FakeStream:
        return self._kernels

    def copy(self, target: torch.Tensor, source: torch.Tensor, stream: FakeStream, *, wait: bool) -> None:
        with self._lock:
            for clock in self._clocks.values():
                merge(stream.clock, clock)  # that a block is copied once it has been read shows in what is copied
            tick = self._tick(stream)
            self._use(source.data_ptr(), stream.clock, tick, writes=False)
            self._use(target.data_ptr(), stream.clock, tick, writes=True)
            target.copy_(source)
            self.copies.append((source.data_ptr(), target.data_ptr()))
            if wait:
                self.num_waits += 1
                merge(self.thread_clock(), stream.clock)
            if len(self.copies) == self._fails_after:
                raise KeyboardInterrupt

    def compute(self, memory: torch.Tensor) -> None:
        """Launch a kernel that reads `memory`."""
        with self._lock:
            merge(self._kernels.clock, self.thread_clock())
            self._use(memory.data_ptr(), self._kernels.clock, self._tick(self._kernels), writes=False)

    def read_from_disk(self, address: int) -> None:
        """Note that this thread writes to memory that the card copies from."""
        with self._lock:
            clock, name = self.thread_clock(), threading.current_thread().name
            clock[name] = clock.get(name, 0) + 1
            self._use(address, clock, (name, clock[name]), writes=True)

    def wait_for(self, event: FakeEvent) -> None:
        with self._lock:
            merge(self.thread_clock(), event.clock)

    def pin(self, memory: torch.Tensor) -> bool:
        self._add(memory)
        if memory.nbytes > self._left_to_pin:
            return False
        self._left_to_pin -= memory.nbytes
        self.pinned_bytes += memory.nbytes
        self.num_pins += 1
        return True

    def unpin(self, memory: torch.Tensor) -> None:
        self._left_to_pin += memory.nbytes
        self.pinned_bytes -= memory.nbytes

    def finish(self) -> None:
        pass

    def give_back(self) -> None:
        pass

    def thread_clock(self) -> Clock:
        with self._lock:
            clock = self._clocks.setdefault(threading.current_thread().name, {})
            merge(clock, self._clocks.get("MainThread", {}))  # which hands out all work
            return clock

    def _tick(self, stream: FakeStream) -> tuple[str, int]:
        stream.clock[stream.name] = stream.clock.get(stream.name, 0) + 1
        return stream.name, stream.clock[stream.name]

    def _add(self, memory: torch.Tensor) -> None:
        with self._lock:
            region = Region(memory)
            self._regions = [other for other in self._regions if other.end <= region.start or other.start >= region.end]
            self._regions.append(region)

    def _use(self, address: int, clock: Clock, tick: tuple[str, int], *, writes: bool) -> None:
        for region in self._regions:
            if region.start <= address < region.end:
                before = region.reads if writes else region.writes
                self.races += [f"{tick} may come before {other}" for other in before if clock.get(other[0], 0) < other[1]]
                if not writes:
                    region.reads.append(tick)
                    return
                region.reads = []
                region.writes = [other for other in region.writes if clock.get(other[0], 0) < other[1]] + [tick]

    def _free(self, num_bytes: int) -> None:
        self.allocated_bytes -= num_bytes


class WatchedPlacement(DevicePlacement):
    """Pretends that kernels use what is lent until it is taken back, and what is kept once."""

    _in_use = None

    def keep(self, block, buffer):
        tensors = super().keep(block, buffer)
        self._card.compute(next(iter(tensors.values())))
        return tensors

    def lend(self, block, buffer):
        self._in_use = block.name
        return super().lend(block, buffer)

    def take_back(self, block):
        if block.name in self._lent and block.name == self._in_use:
            self._card.compute(self._lent[block.name].bytes)
        super().take_back(block)


class WatchedReader(FileReader):
    """Tells `card` of what is read."""

    def __init__(self, card: FakeCard):
        super().__init__()
        self._card = card
        self._offsets = set()

    def has_read(self, block) -> bool:
        """Whether the one tensor of `block` was read."""
        return block.recipes[0].source.offset in self._offsets

    def read_into(self, path, offset, target):
        self._offsets.add(offset)
        self._card.read_from_disk(np.frombuffer(target, dtype=np.uint8).ctypes.data)
        super().read_into(path, offset, target)
