import asyncio
import threading

import pytest

from layermesh.worker.write_behind import MOST_BEHIND, WriteBehind


def test_steps_are_done_in_order_and_all_of_them_when_it_is_left():
    done = []

    async def run():
        async with WriteBehind() as writing:
            for number in range(50):
                await writing.put(done.append, bytes([number]))
        assert len(done) == 50

    asyncio.run(run())
    assert done == [bytes([number]) for number in range(50)]


def test_never_more_than_a_few_steps_wait():
    gate, begun = threading.Event(), []

    def step(data):
        begun.append(data)
        gate.wait(10)

    async def run():
        async with WriteBehind() as writing:
            for _ in range(MOST_BEHIND):
                await writing.put(step, b"")
            threading.Timer(0.3, gate.set).start()
            with pytest.raises(TimeoutError):  # it holds on until the oldest is done, whoever wants to go
                await asyncio.wait_for(writing.put(step, b"one too many"), 0.1)

    asyncio.run(run())
    assert begun == [b""] * MOST_BEHIND


def test_after_a_step_has_failed_none_is_begun_and_its_error_is_raised():
    begun = []

    def step(data):
        begun.append(data)
        if data == b"2":
            raise OSError("the disk is full")

    async def run():
        async with WriteBehind() as writing:
            for number in range(20):
                await writing.put(step, str(number).encode())

    with pytest.raises(OSError, match="full"):
        asyncio.run(run())
    assert begun == [b"0", b"1", b"2"]


def test_what_came_before_the_source_failed_is_done():
    done = []

    async def run():
        async with WriteBehind() as writing:
            await writing.put(done.append, b"1")
            await writing.put(done.append, b"2")
            raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        asyncio.run(run())
    assert done == [b"1", b"2"]


def test_whoever_is_cancelled_waits_for_the_step_under_way():
    gate, ended = threading.Event(), []

    def step(data):
        gate.wait(10)
        ended.append(data)

    async def run():
        async def writing():
            async with WriteBehind() as behind:
                await behind.put(step, b"1")
                await asyncio.sleep(60)

        task = asyncio.create_task(writing())
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.sleep(0.05)
        assert not task.done()
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert ended == [b"1"]
