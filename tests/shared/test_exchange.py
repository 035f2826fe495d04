"""Calls with streams both ways, over real sockets."""

import asyncio
import socket
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest

from layermesh.shared.exchange import exchange

METHOD = "/test/Talk"


async def first_of_many(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
    """Answer one request, and end."""
    async for request in requests:
        yield b"re: " + request
        return


async def echo(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
    async for request in requests:
        yield b"re: " + request


async def some(*requests: bytes) -> AsyncIterator[bytes]:
    for request in requests:
        yield request


async def endless() -> AsyncIterator[bytes]:
    yield b"one"
    await asyncio.Event().wait()


async def failing() -> AsyncIterator[bytes]:
    yield b"one"
    raise OSError("the disk is gone")


async def talk(behaviour, requests):
    """Return the responses, and what still sends when they have ended."""
    server = grpc.aio.server()
    handler = grpc.stream_stream_rpc_method_handler(behaviour)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", {"Talk": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            async with exchange(channel.stream_stream(METHOD)(), requests) as responses:
                received = [response async for response in responses]
            waiting = [task for task in asyncio.all_tasks() if "_send" in repr(task)]
    finally:
        await server.stop(None)
    return received, waiting


def test_all_requests_are_sent_and_all_responses_come():
    received, waiting = asyncio.run(talk(echo, some(b"one", b"two")))
    assert received == [b"re: one", b"re: two"]
    assert waiting == []


def test_nothing_waits_for_requests_once_the_other_side_has_ended():
    received, waiting = asyncio.run(talk(first_of_many, endless()))
    assert received == [b"re: one"]
    assert waiting == []


def test_requests_that_fail_break_the_call_off():
    with pytest.raises(OSError, match="the disk is gone"):
        asyncio.run(talk(echo, failing()))


def test_nothing_is_left_of_calls_that_are_cancelled_while_their_connection_fails():
    """At whatever moment: some of these come between the failure and gRPC's notice of it."""

    async def run() -> list[str]:
        loop = asyncio.get_running_loop()
        for number in range(2000):
            with socket.socket() as unused:
                unused.bind(("127.0.0.1", 0))
                port = unused.getsockname()[1]
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")

            async def receive(channel=channel) -> None:
                async with exchange(channel.stream_stream(METHOD)(), some(b"one")) as responses:
                    async for _ in responses:
                        pass

            receiving = asyncio.create_task(receive())
            end = loop.time() + number % 25 * 0.0001
            while loop.time() < end and not receiving.done():
                await asyncio.sleep(0)
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)
            await channel.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=1)
        return [repr(task) for task in others if not task.done()]

    assert asyncio.run(run()) == []
