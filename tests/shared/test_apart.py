import asyncio
import os
import subprocess
import sys
import threading

import pytest

from layermesh.shared.apart import start_apart

COUNT_THREADS = """
import os, time, torch
from layermesh.shared.apart import start_apart

def num_threads():
    return len(os.listdir("/proc/self/task"))

def compute():
    torch.ones(1 << 22).sum()
    return num_threads()

before = num_threads()
during = start_apart(compute).result()
deadline = time.monotonic() + 20
while num_threads() > before and time.monotonic() < deadline:
    time.sleep(0.01)
print(during - before, num_threads() - before, compute() - before, torch.get_num_threads())
"""


def test_results_and_errors_arrive():
    assert start_apart(lambda: 6 * 7).result() == 42
    with pytest.raises(ZeroDivisionError):
        start_apart(lambda: 1 // 0).result()


def test_one_who_no_longer_waits_does_not_stop_it():
    async def scenario():
        may_end = threading.Event()
        running = start_apart(lambda: may_end.wait(20))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(running), 0.01)
        may_end.set()
        return await asyncio.to_thread(running.result, 20)

    assert asyncio.run(scenario())


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_the_threads_that_computed_with_it_end_with_it():
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    counted = subprocess.run([sys.executable, "-c", COUNT_THREADS], env=environment, capture_output=True, text=True, check=True)
    during, afterwards, in_one_that_stays, all_that_compute = map(int, counted.stdout.split())
    assert (during, afterwards, in_one_that_stays) == (all_that_compute, 0, all_that_compute - 1)
