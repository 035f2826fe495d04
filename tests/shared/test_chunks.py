import asyncio
import hashlib

import pytest

from layermesh.protos import mesh_pb2 as pb
from layermesh.shared.chunks import in_chunks, read_chunks
from layermesh.shared.errors import CheckpointError
from layermesh.shared.part_source import PartReading
from layermesh.shared.wire import PART_BYTES


async def collect(reading):
    return [message.chunk async for message in read_chunks(reading, "layer 3", pb.PrepareRequest)]


@pytest.mark.parametrize("num_bytes", [0, 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES])
def test_bytes_are_cut_and_come_together_again(num_bytes):
    data = bytes(range(256)) * (num_bytes // 256) + bytes(num_bytes % 256)
    assert b"".join(in_chunks(data)) == data
    assert all(0 < len(chunk) <= PART_BYTES for chunk in in_chunks(data))


@pytest.mark.parametrize("offset", [0, 5, PART_BYTES, 2 * PART_BYTES + 7, 2**40])
def test_a_part_is_read_in_order_and_its_hash_is_in_the_last_chunk_alone(offset):
    data = bytes(2 * PART_BYTES + 7)
    chunks = asyncio.run(collect(PartReading(in_chunks(data), offset)))
    assert b"".join(chunk.data for chunk in chunks) == data[offset:]
    assert {chunk.part for chunk in chunks} == {"layer 3"}
    assert [chunk.sha256 for chunk in chunks[:-1]] == [b""] * (len(chunks) - 1)
    assert chunks[-1].sha256 == hashlib.sha256(data).digest()


def test_what_reading_raises_comes_after_what_was_read():
    def broken():
        yield b"one"
        raise CheckpointError("the disk was unplugged")

    seen = []

    async def run():
        async for message in read_chunks(PartReading(broken(), 0), "rest", pb.FetchResponse):
            seen.append(message.chunk.data)  # noqa: PERF401 - what came before the error counts

    with pytest.raises(CheckpointError, match="unplugged"):
        asyncio.run(run())
    assert seen == [b"one"]
