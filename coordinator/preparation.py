"""The talk in which a worker makes a span ready and asks for what it lacks."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from layermesh.protos import mesh_pb2 as pb
from layermesh.shared.chunks import Reading, read_chunks
from layermesh.shared.errors import LayermeshError
from layermesh.shared.exchange import exchange

ReadPart = Callable[[str, int], Reading]
Progress = Callable[[pb.PrepareProgress], None]


async def converse(
    call: Callable[..., Any], start: pb.PrepareStart, read: ReadPart, progress: Progress
) -> pb.PrepareResponse | None:
    """Ask for a span by `call`, send the parts that are wanted, and return how it ended; None where the connection did."""
    outgoing: asyncio.Queue[pb.PrepareRequest | None] = asyncio.Queue(maxsize=4)
    outgoing.put_nowait(pb.PrepareRequest(start=start))
    sending: asyncio.Task[None] | None = None
    ended: pb.PrepareResponse | None = None
    async with exchange(call(), _drain(outgoing)) as responses:
        try:
            async for response in responses:
                match response.WhichOneof("kind"):
                    case "wanted":
                        await _settle(sending)
                        wanted = response.wanted
                        sending = asyncio.create_task(_send(read(wanted.part, wanted.offset), wanted.part, outgoing))
                    case "progress":
                        progress(response.progress)
                    case "ready" | "failed":
                        await _settle(sending)
                        ended = response  # the worker ends the stream once we have ended our side
                        await _end(sending, outgoing)
        finally:
            await _end(sending, outgoing)
    return ended


async def _drain(outgoing: "asyncio.Queue[pb.PrepareRequest | None]") -> AsyncIterator[pb.PrepareRequest]:
    while (request := await outgoing.get()) is not None:
        yield request


async def _send(reading: Reading, part: str, outgoing: "asyncio.Queue[pb.PrepareRequest | None]") -> None:
    try:
        async for request in read_chunks(reading, part, pb.PrepareRequest):
            await outgoing.put(request)
    except Exception:
        await outgoing.put(None)  # or the worker would wait for the rest, and we for it
        raise


async def _end(sending: "asyncio.Task[None] | None", outgoing: "asyncio.Queue[pb.PrepareRequest | None]") -> None:
    """Send nothing more."""
    if sending is not None:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    while not outgoing.empty():
        outgoing.get_nowait()
    outgoing.put_nowait(None)


async def _settle(sending: "asyncio.Task[None] | None") -> None:
    """Raise what made sending fail: this machine's own files, most likely."""
    if sending is not None and sending.done():
        error = sending.exception()
        if isinstance(error, LayermeshError):
            raise error
