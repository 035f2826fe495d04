"""The workers that frames go on to, each by one lasting stream."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence

import grpc
import grpc.aio

from layermesh.protos import mesh_pb2 as pb
from layermesh.protos.mesh_pb2_grpc import WorkerServiceStub
from layermesh.shared.channels import Channels
from layermesh.shared.errors import LayermeshError
from layermesh.shared.exchange import exchange
from layermesh.shared.heartbeat import until_silent
from layermesh.worker.outbox import Outbox

CLOSE_SECONDS = 1.0
TOO_SLOW = "it takes frames more slowly than they come"
Lost = Callable[[str, str], None]


class Neighbours:
    """Sends frames to other workers; `lost` is told the address of one that went away, and why."""

    def __init__(self, lost: Lost, channels: Channels) -> None:
        self._lost = lost
        self._channels = channels
        self._streams: dict[str, _Stream] = {}

    def send(self, address: str, parts: Sequence[pb.FramePart]) -> None:
        """Send the parts of frames to the worker at `address`, in order."""
        stream = self._streams.get(address)
        if stream is None:
            stream = self._streams[address] = _Stream(address, self._channels, self._end)
        for part in parts:
            stream.parts.put(part)

    async def keep(self, addresses: Collection[str]) -> None:
        """End the streams to all others."""
        idle = [address for address in self._streams if address not in addresses]
        for stream in [self._streams.pop(address) for address in idle]:
            await stream.close()

    async def close(self) -> None:
        """End all streams."""
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            await stream.close()

    def _end(self, address: str, why: str) -> None:
        if self._streams.pop(address, None) is not None:
            self._lost(address, why)


class _Stream:
    def __init__(self, address: str, channels: Channels, ended: Lost) -> None:
        self.parts: Outbox[pb.FramePart] = Outbox()
        self._address = address
        self._channels = channels
        self._ended = ended
        self._task = asyncio.create_task(self._carry())

    async def close(self) -> None:
        self.parts.end()
        await asyncio.wait([self._task], timeout=CLOSE_SECONDS)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _carry(self) -> None:
        try:
            why = await self._until_the_end()
        except LayermeshError as error:
            why = str(error)
        except asyncio.CancelledError:
            if not self._channels.is_cut(self._address):
                raise
            why = "it was removed from the mesh"
        self._ended(self._address, why)

    async def _until_the_end(self) -> str:
        """Send, and return why there was an end. Raises AuthenticationError for a node that nothing may be sent to."""
        async with self._channels.open(self._address) as channel:
            sending = asyncio.create_task(self._send(channel))
            silence = asyncio.create_task(_until_silent(channel))
            try:
                done, _ = await asyncio.wait([sending, silence], return_when=asyncio.FIRST_COMPLETED)
            finally:
                sending.cancel()
                silence.cancel()
                await asyncio.gather(sending, silence, return_exceptions=True)
        return done.pop().result()

    async def _send(self, channel: grpc.aio.Channel) -> str:
        """Send until the end, and return why there was one."""
        try:
            async with exchange(WorkerServiceStub(channel).Forward(), self._requests()) as responses:
                async for _ in responses:
                    pass
        except grpc.aio.AioRpcError as error:
            return error.details() or error.code().name
        return TOO_SLOW if self.parts.is_overrun else "it ended the connection"

    async def _requests(self) -> AsyncIterator[pb.ForwardRequest]:
        async for part in self.parts.messages():
            yield pb.ForwardRequest(frame=part)


async def _until_silent(channel: grpc.aio.Channel) -> str:
    return (await until_silent(channel)).why
