"""A route of workers as one thread uses it: frames in at the front, what becomes of them out at the end."""

import asyncio
import queue
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import grpc.aio

from layermesh.coordinator.arrivals import Arrival, checked
from layermesh.coordinator.event_loop import EventLoop
from layermesh.coordinator.worker_client import WorkerClient
from layermesh.protos import mesh_pb2 as pb
from layermesh.shared.errors import LayermeshError, MeshError
from layermesh.shared.footprint import SequenceSize
from layermesh.shared.frames import Failure, Frame, SessionId
from layermesh.shared.problems import to_error
from layermesh.shared.protocol import PROTOCOL_VERSION
from layermesh.shared.stage_key import StageKey
from layermesh.shared.wire import Envelope, FrameAssembler, Scores, ScoresAssembler, envelope_parts

OPEN_SECONDS = 15.0
CLOSE_SECONDS = 2.0
WAKE_SECONDS = 0.2  # between two looks at what else there is to do


@dataclass(frozen=True, slots=True)
class RemoteHop:
    """A worker, the stage that is ready there, and where the worker before it reaches it."""

    client: WorkerClient
    key: StageKey
    address: str


class RemoteRoute:
    """The streams to all workers of a route; each tells the coordinator itself when something goes wrong there."""

    def __init__(self, loop: EventLoop, hops: Sequence[RemoteHop]) -> None:
        self.hops = tuple(hops)
        self.id = uuid.uuid4().hex
        self.streams = False  # whether a worker reads blocks in every sweep
        self._loop = loop
        self._arrivals: queue.SimpleQueue[Arrival | None] = queue.SimpleQueue()  # None: somebody went away
        self._streams: list[_Stream] = []
        self._broken: LayermeshError | None = None
        self._is_closed = False
        try:
            loop.run(self._open())
        except BaseException:
            self.close()
            raise

    @property
    def is_broken(self) -> bool:
        """Whether a worker went away."""
        return self._broken is not None

    def reserve(self, session: SessionId, size: SequenceSize) -> None:
        """Make room for a session on every worker. Raises BudgetError."""

        async def reserve() -> list[pb.ReserveResponse]:
            return await asyncio.gather(*(hop.client.reserve(hop.key, self.id, session, size) for hop in self.hops))

        self.streams = any(response.streamed_bytes for response in self._loop.run(reserve()))

    def release(self, session: SessionId) -> None:
        """Forget a session on every worker; with the route they are forgotten anyway."""
        if self._is_closed:
            return

        async def release() -> None:
            await asyncio.gather(*(hop.client.release(hop.key, session) for hop in self.hops))

        self._loop.run(release())

    def send(self, frames: Sequence[Frame], sweep: int) -> None:
        """Send the frames of one sweep on their way."""
        parts = [part for frame in frames for part in envelope_parts(Envelope(self.id, 0, sweep, len(frames), frame))]
        self._loop.loop.call_soon_threadsafe(self._streams[0].send, parts)

    def receive(self, waiting: Callable[[], None]) -> Envelope | Scores | Failure:
        """Return what comes back next; `waiting` is called now and then meanwhile.

        Raises MeshError where a worker went away.
        """
        while True:
            if self._broken is not None:
                raise self._broken
            try:
                arrival = self._arrivals.get(timeout=WAKE_SECONDS)
            except queue.Empty:
                waiting()
                continue
            if arrival is not None:
                return arrival

    def close(self) -> None:
        """End the streams, with which the workers forget the route and its sessions."""
        if self._is_closed:
            return

        async def close() -> None:
            await asyncio.gather(*(stream.close() for stream in self._streams))

        self._is_closed = True
        self._broken = self._broken or MeshError("the workers were let go of in the middle of this. Ask again.")
        self._loop.run(close())

    async def _open(self) -> None:
        hops = [pb.Hop(worker=hop.client.name, address=hop.address, key=hop.key.to_proto()) for hop in self.hops]
        for number, hop in enumerate(self.hops):
            route = pb.Route(version=PROTOCOL_VERSION, id=self.id, epoch=0, hops=hops, hop=number)
            self._streams.append(_Stream(hop.client, route, self._arrivals.put, self._break))
        await asyncio.gather(*(stream.accepted() for stream in self._streams))

    def _break(self, error: LayermeshError) -> None:
        self._broken = self._broken or error
        self._arrivals.put(None)


class _Stream:
    """The stream to one worker: what comes back is given to `arrive`, and to `end` why nothing comes any more."""

    def __init__(
        self,
        client: WorkerClient,
        route: pb.Route,
        arrive: Callable[[Arrival], None],
        end: Callable[[LayermeshError], None],
    ) -> None:
        self._client = client
        self._arrive = arrive
        self._end = end
        self._requests: asyncio.Queue[pb.ForwardRequest | None] = asyncio.Queue()  # None: the end
        self._requests.put_nowait(pb.ForwardRequest(route=route))
        self._accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._receive())

    async def accepted(self) -> None:
        """Return when the worker knows the route; raises MeshError where it does not take it."""
        try:
            await asyncio.wait_for(asyncio.shield(self._accepted), OPEN_SECONDS)
        except TimeoutError as error:
            raise MeshError(f"worker {self._client.name} did not take the route in time. Is it overloaded?") from error

    def send(self, parts: Sequence[pb.FramePart]) -> None:
        """Send the parts of frames, in order."""
        for part in parts:
            self._requests.put_nowait(pb.ForwardRequest(frame=part))

    async def close(self) -> None:
        """End the stream: with our side of it the worker ends its own."""
        self._requests.put_nowait(None)
        await asyncio.wait([self._task], timeout=CLOSE_SECONDS)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._accepted.done() and not self._accepted.cancelled():
            self._accepted.exception()  # seen

    async def _receive(self) -> None:
        error: LayermeshError = MeshError(f"worker {self._client.name} ended the connection. Look at its screen.")
        frames, scores = FrameAssembler(), ScoresAssembler()
        try:
            async for response in self._client.forward(self._outgoing()):
                arrival: Arrival | None = None
                match response.WhichOneof("kind"):
                    case "accepted":
                        self._accept()
                    case "frame":
                        arrival = frames.add(response.frame)
                    case "logits":
                        arrival = scores.add(response.logits)
                    case "failure":
                        arrival = self._failure(response.failure)
                if arrival is not None:
                    self._arrive(checked(arrival, self._client.name))
        except grpc.aio.AioRpcError as failed:
            error = self._client.explain(failed)
        except LayermeshError as failed:
            error = failed
        finally:
            self._requests.put_nowait(None)  # gRPC goes on waiting for more where the other side ended it
        if not self._accepted.done():
            self._accepted.set_exception(error)
        self._end(error)

    def _accept(self) -> None:
        if not self._accepted.done():
            self._accepted.set_result(None)

    def _failure(self, failure: pb.FrameFailure) -> Failure:
        """Return what became of a session; raises the error where it is the whole route's."""
        error = to_error(failure.problem, failure.worker[:80] or self._client.name)
        if not failure.session:
            raise error
        return Failure(SessionId(failure.session), failure.step, error)

    async def _outgoing(self) -> AsyncIterator[pb.ForwardRequest]:
        while (request := await self._requests.get()) is not None:
            yield request
