"""What a process takes of a card's memory: bounded where a bound was asked for, and measured."""

import torch


class CardMemory:
    """Keeps torch's allocations on a card within `bound_bytes` from now on, and knows their peak.

    The bound is a second line of defence behind the plan: beyond it torch first gives up what it holds in reserve, then raises
    OutOfMemoryError. It counts what torch has taken from the card, whether or not tensors fill it; the driver's own context
    comes on top. Both hold for the whole process, so there is one of these at a time.
    """

    def __init__(self, device: torch.device, bound_bytes: int | None = None) -> None:
        torch.cuda.init()
        self._device = device
        self._before_bytes = torch.cuda.memory_reserved(device)
        self._fraction_before: float | None = None
        torch.cuda.reset_peak_memory_stats(device)
        if bound_bytes is not None:
            self._fraction_before = torch.cuda.get_per_process_memory_fraction(device)
            total_bytes = torch.cuda.get_device_properties(device).total_memory
            fraction = (self._before_bytes + bound_bytes) / total_bytes
            torch.cuda.set_per_process_memory_fraction(min(fraction, 1.0), device)

    @property
    def peak_bytes(self) -> int:
        """The most that torch has taken from the card since then."""
        return max(torch.cuda.max_memory_reserved(self._device) - self._before_bytes, 0)

    def close(self) -> None:
        """Lift the bound."""
        if self._fraction_before is not None:
            torch.cuda.set_per_process_memory_fraction(self._fraction_before, self._device)
            self._fraction_before = None
