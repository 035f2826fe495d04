import asyncio
import threading

import pytest

from layermesh.worker.finishing import to_its_end


def test_what_it_returns_and_raises_comes_through():
    async def run():
        assert await to_its_end(asyncio.to_thread(lambda: 5)) == 5
        with pytest.raises(ZeroDivisionError):
            await to_its_end(asyncio.to_thread(lambda: 1 // 0))

    asyncio.run(run())


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "fails"])
def test_whoever_is_cancelled_waits_for_the_end(fails):
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def work():
        begun.set()
        go_on.wait(10)
        ended.set()
        if fails:
            raise RuntimeError("made up")

    async def run():
        task = asyncio.create_task(to_its_end(asyncio.to_thread(work)))
        await asyncio.to_thread(begun.wait, 10)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    asyncio.run(run())
