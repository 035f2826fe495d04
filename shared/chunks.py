"""Parts of a model as messages, read in a thread while the ones before are sent."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Protocol

from layermesh.protos import mesh_pb2 as pb
from layermesh.shared.protocol import PART_BYTES


class Reading(Protocol):
    """A part being read: its bytes in chunks, and its hash once all have been read."""

    def __iter__(self) -> Iterator[bytes]: ...

    @property
    def sha256(self) -> bytes: ...


async def read_chunks(reading: Reading, part: str) -> AsyncIterator[pb.Chunk]:
    """Yield what `reading` reads; the last chunk has the hash of the whole part."""
    chunks = iter(reading)
    chunk = await asyncio.to_thread(next, chunks, None)
    while chunk is not None:
        following = asyncio.get_running_loop().run_in_executor(None, next, chunks, None)
        yield pb.Chunk(part=part, data=chunk)
        chunk = await following
    yield pb.Chunk(part=part, sha256=reading.sha256)


def in_chunks(data: bytes) -> Iterator[bytes]:
    """Cut `data` into chunks of the size that travels best."""
    for start in range(0, len(data), PART_BYTES):
        yield data[start : start + PART_BYTES]
