"""Calls whose two sides both stream: whatever ends one, nothing of it goes on."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc
import grpc.aio

Request = TypeVar("Request")


@asynccontextmanager
async def exchange(call: Any, requests: AsyncIterator[Request]) -> AsyncIterator[AsyncIterable[Any]]:
    """Send `requests` over `call`, which was made without any, and yield what comes back; the call ends with the context.

    Given the requests itself, gRPC would go on waiting for more of them after the other side's end, and for ever to send one
    where it is cancelled just as the connection fails. The responses raise grpc.aio.AioRpcError; the context raises what the
    requests did.
    """
    sending = asyncio.create_task(_send(call, requests))
    try:
        yield call
    finally:
        call.cancel()
        sending.cancel()
        (failure,) = await asyncio.gather(sending, return_exceptions=True)
        if isinstance(failure, Exception):
            raise failure


async def _send(call: Any, requests: AsyncIterator[Request]) -> None:
    try:
        async for request in requests:
            await call.write(request)
        await call.done_writing()
    except (grpc.aio.AioRpcError, grpc.aio.InternalError, asyncio.InvalidStateError):
        return  # it has ended, and the responses say why
    except Exception:
        call.cancel()
        raise
