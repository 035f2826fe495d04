"""The time and the bytes of an answer."""

import time

from layermesh.coordinator.answer import Memory, StreamFigures, Timings
from layermesh.local import LocalModel


class Meter:
    """Takes the time and the bytes of one answer, which was asked for at `began` (of the monotonic clock)."""

    def __init__(self, local: LocalModel, began: float) -> None:
        self._local = local
        self._files = local.stage.files
        self._gone_bytes, self._gone_seconds = 0, 0.0  # read by stages that were here before, less what they had read then
        self._began = began
        self._bytes_before = self._first_bytes = self._num_bytes()
        self._seconds_before = self._busy_seconds()
        self._first = self._last = began
        self._num_tokens = 0

    def token(self) -> None:
        """Note that a token was made just now."""
        self._last = time.monotonic()
        self._num_tokens += 1
        if self._num_tokens == 1:
            self._first = self._last
            self._first_bytes = self._num_bytes()

    def stream(self, num_sweeps: int) -> StreamFigures:
        """Return what was read, in `num_sweeps` passes through the layers."""
        decoded = self._num_tokens - 1
        return StreamFigures(
            disk_bytes=self._num_bytes() - self._bytes_before,
            disk_seconds=self._busy_seconds() - self._seconds_before,
            sweeps=num_sweeps,
            bytes_per_token=(self._num_bytes() - self._first_bytes) / decoded if decoded else 0.0,
        )

    def timings(self) -> Timings:
        """Return how long it took so far."""
        decoded = self._num_tokens - 1
        decode_seconds = self._last - self._first
        return Timings(
            load_seconds=self._local.load_seconds,
            time_to_first_token_seconds=self._first - self._began,
            decode_seconds=decode_seconds,
            decode_tokens_per_second=decoded / decode_seconds if decoded else None,
            total_seconds=self._last - self._began,
            hops=self._local.hop_figures(),
            network_seconds=self._local.network_seconds(),
        )

    def _num_bytes(self) -> int:
        self._follow()
        return self._gone_bytes + self._files.num_bytes

    def _busy_seconds(self) -> float:
        self._follow()
        return self._gone_seconds + self._files.busy_seconds

    def _follow(self) -> None:
        """Go over to the stage that is here now: another one, where machines have changed in the middle of the answer."""
        if (files := self._local.stage.files) is not self._files:
            self._gone_bytes += self._files.num_bytes
            self._gone_seconds += self._files.busy_seconds
            self._files = files

    def memory(self) -> Memory:
        """Return what the model has occupied at most since it was opened."""
        local = self._local
        card = local.card_memory
        return Memory(
            device_peak_bytes=0 if card is None else card.peak_bytes,
            host_peak_bytes=local.stage.peak_bytes if card is None else local.stage.staging_bytes,
            device_budget_bytes=local.device_budget_bytes,
            host_budget_bytes=local.host_budget_bytes,
        )
