"""Waiting for what other processes bring about."""

import time
from collections.abc import Callable


def wait_until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    """Return as soon as it holds, looking often without taking the cores that it may need; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"it did not come about in {seconds} s"
        time.sleep(0.01)
