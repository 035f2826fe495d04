"""Waiting for what other processes bring about."""

import time
from collections.abc import Callable


def wait_until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    """Return as soon as it holds, looking often without taking the cores that it may need; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:  # no assert: it would be gone under `python -O`, and the end with it
            raise AssertionError(f"it did not come about in {seconds} s")
        time.sleep(0.01)
