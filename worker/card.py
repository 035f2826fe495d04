"""What is asked of a CUDA card, in one place, so that the order of copies and kernels can be tested without one."""

from contextlib import suppress
from typing import Any, Final, Protocol

import torch

_PORTABLE: Final = 1  # cudaHostRegisterPortable: pinned for every card, not only the one that is current


class Stream(Protocol):
    """Work that a card does in order."""

    def wait_event(self, event: Any) -> None:
        """Do what comes after this only once `event` has happened."""
        ...


class Event(Protocol):
    """A point in a stream; one that was never recorded has happened."""

    def record(self, stream: Any) -> None:
        """Happen when what `stream` was given so far is done."""
        ...


class Card(Protocol):
    """Memory, streams, events and copies of one card."""

    def allocate(self, num_bytes: int) -> torch.Tensor:
        """Return memory of the card, uint8 `[num_bytes]`. What the current stream does with it is in order, and only that."""
        ...

    def new_stream(self) -> Stream:
        """Return a stream beside the one for kernels."""
        ...

    def new_event(self) -> Event:
        """Return an event that threads can wait for."""
        ...

    def current_stream(self) -> Stream:
        """Return the stream that this thread's kernels go to."""
        ...

    def copy(self, target: torch.Tensor, source: torch.Tensor, stream: Stream, *, wait: bool) -> None:
        """Copy `source`, on the host, to `target`, on the card, as part of `stream`; return at once unless `wait`."""
        ...

    def wait_for(self, event: Event) -> None:
        """Return when `event` has happened; other threads run meanwhile."""
        ...

    def pin(self, memory: torch.Tensor) -> bool:
        """Let the card copy from `memory` on its own; False where the system does not allow that."""
        ...

    def unpin(self, memory: torch.Tensor) -> None:
        """Take that back, if it was allowed."""
        ...

    def finish(self) -> None:
        """Return when the card is done with everything."""
        ...

    def give_back(self) -> None:
        """Let others have the memory that nothing is in any more."""
        ...


class CudaCard:
    """The card of a torch device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def allocate(self, num_bytes: int) -> torch.Tensor:
        """Return uninitialised memory. Raises torch.OutOfMemoryError."""
        return torch.empty(num_bytes, dtype=torch.uint8, device=self._device)

    def new_stream(self) -> Stream:
        """Return a stream beside the one for kernels."""
        return torch.cuda.Stream(self._device)

    def new_event(self) -> Event:
        """Return an event for which threads sleep instead of spinning: the processor has weights to read and to compute."""
        return torch.cuda.Event(blocking=True)

    def current_stream(self) -> Stream:
        """Return the stream that this thread's kernels go to."""
        return torch.cuda.current_stream(self._device)

    def copy(self, target: torch.Tensor, source: torch.Tensor, stream: Stream, *, wait: bool) -> None:
        """Copy `source` to `target` as part of `stream`."""
        assert isinstance(stream, torch.cuda.Stream)
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=not wait)

    def wait_for(self, event: Event) -> None:
        """Return when `event` has happened."""
        assert isinstance(event, torch.cuda.Event)
        with torch.cuda.device(self._device):  # a thread that names no card makes room for itself on the first one
            event.synchronize()

    def pin(self, memory: torch.Tensor) -> bool:
        """Register `memory` where it lies: torch's own pinned allocations take the next power of two."""
        with torch.cuda.device(self._device):
            refused = int(_runtime().cudaHostRegister(memory.data_ptr(), memory.numel(), _PORTABLE))
        if refused:
            self._forget_refusal()
        return not refused

    def unpin(self, memory: torch.Tensor) -> None:
        """Unregister `memory`."""
        with torch.cuda.device(self._device):
            refused = int(_runtime().cudaHostUnregister(memory.data_ptr()))
        if refused:
            self._forget_refusal()

    def finish(self) -> None:
        """Return when the card is done with everything; a card that has failed is done too, and has said so before."""
        with suppress(RuntimeError):
            torch.cuda.synchronize(self._device)

    def give_back(self) -> None:
        """Return torch's spare memory to the card."""
        with suppress(RuntimeError):
            torch.cuda.empty_cache()

    def _forget_refusal(self) -> None:
        # CUDA remembers the last error until somebody asks, and torch asks after its next kernel, which then seems to fail.
        with suppress(RuntimeError):
            torch.ones(1, device=self._device)


def _runtime() -> Any:
    return torch.cuda.cudart()
