"""How fast blocks get from the host to a card."""

import time
from typing import Final

from layermesh.worker.card import Card
from layermesh.worker.cuda import CardBuffer

MEASURED_BYTES: Final = 64 << 20
NUM_COPIES: Final = 3


def measure_bus(card: Card, num_bytes: int = MEASURED_BYTES) -> float:
    """Return the bytes per second that copies of blocks reach, the best of a few.

    It takes `num_bytes` of host memory and of the card's, and gives them back. Raises torch.OutOfMemoryError.
    """
    buffer, target, stream = CardBuffer(num_bytes, card), card.allocate(num_bytes), card.new_stream()
    started = card.new_event()
    started.record(card.current_stream())
    stream.wait_event(started)  # what used this memory before may still be under way
    seconds = []
    for _ in range(1 + NUM_COPIES):
        began = time.perf_counter()
        buffer.copy_to(target, stream)
        buffer.wait_until_free()
        seconds.append(time.perf_counter() - began)
    return num_bytes / max(min(seconds[1:]), 1e-9)  # the first one wakes the card up
