"""Parts of a model as messages, read in a thread while the ones before are sent."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Protocol, TypeVar

from layermesh.protos import mesh_pb2 as pb
from layermesh.shared.protocol import PART_BYTES

M = TypeVar("M", pb.PrepareRequest, pb.FetchResponse)


class Reading(Protocol):
    """A part being read: its bytes in chunks, and its hash once all have been read."""

    def __iter__(self) -> Iterator[bytes]: ...

    @property
    def sha256(self) -> bytes: ...


async def read_chunks(reading: Reading, part: str, message: type[M]) -> AsyncIterator[M]:
    """Yield what `reading` reads, each chunk in a `message` of its own; the last one has the hash of the whole part."""
    chunks = iter(reading)

    def read() -> M | None:
        data = next(chunks, None)
        return None if data is None else _made(message, pb.Chunk(part=part), data)

    made = await asyncio.to_thread(read)
    while made is not None:
        following = asyncio.get_running_loop().run_in_executor(None, read)
        yield made
        made = await following
    yield _made(message, pb.Chunk(part=part, sha256=reading.sha256))


def _made(message: type[M], chunk: pb.Chunk, data: bytes = b"") -> M:
    """Return a message with `chunk` in it; its `data` goes straight there, because a mebibyte is copied at each step."""
    made = message(chunk=chunk)
    if data:
        made.chunk.data = data
    return made


def in_chunks(data: bytes) -> Iterator[bytes]:
    """Cut `data` into chunks of the size that travels best."""
    for start in range(0, len(data), PART_BYTES):
        yield data[start : start + PART_BYTES]
