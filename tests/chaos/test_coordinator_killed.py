"""R8: kill -9 of the coordinator; the workers forget its session and give the memory back."""

import time

import pytest

from tests.chaos.endless import Generating
from tests.mesh.waiting import wait_until

pytestmark = pytest.mark.slow
FREED_SECONDS = 30.0
SHARE = 0.01


def test_workers_forget_the_session_and_give_its_memory_back(tmp_path, all_there, series):
    trials = series("R8 coordinator kill -9, until the session is freed")
    with Generating(tmp_path, all_there, num_tokens=400) as first:
        assert first.command.wait(120) == 0, first.command.err
    wait_until(lambda: all(worker.num_routes() == 0 for worker in all_there), FREED_SECONDS)
    before = [worker.resident_bytes() for worker in all_there]
    for _ in range(3):
        with Generating(tmp_path, all_there) as generating:
            assert all(worker.num_sessions() == 1 for worker in all_there)
            generating.command.kill()
            killed = time.monotonic()
            wait_until(lambda: all(worker.num_routes() + worker.num_sessions() == 0 for worker in all_there), FREED_SECONDS)
            seconds = time.monotonic() - killed

        def is_back():
            now = [worker.resident_bytes() for worker in all_there]
            return all(one <= other * (1 + SHARE) for one, other in zip(now, before, strict=True))

        wait_until(is_back, FREED_SECONDS - seconds)
        trials.add("freed, memory back", seconds)
