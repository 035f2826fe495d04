"""A route of workers as one thread uses it: frames in at the front, what becomes of them out at the end."""

import asyncio
import math
import queue
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from layermesh.coordinator.arrivals import checked
from layermesh.coordinator.event_loop import EventLoop, gather_all
from layermesh.coordinator.worker_client import WorkerClient
from layermesh.protos import mesh_pb2 as pb
from layermesh.shared.errors import LayermeshError, MeshError, ResourceError, WorkerLostError, WorkerStarvedError
from layermesh.shared.footprint import SequenceSize
from layermesh.shared.frames import Failure, Frame, SessionId
from layermesh.shared.problems import to_error
from layermesh.shared.protocol import PROTOCOL_VERSION
from layermesh.shared.stage_key import StageKey
from layermesh.shared.wire import Envelope, FrameAssembler, Scores, ScoresAssembler, envelope_parts

T = TypeVar("T")

OPEN_SECONDS = 15.0
CLOSE_SECONDS = 2.0
WAKE_SECONDS = 0.2  # between two looks at what else there is to do
BLAME_SECONDS = 0.6  # in which a worker that somebody complains about may be seen to have ended


@dataclass(frozen=True, slots=True)
class Replayed:
    """A frame has ended where it was to end."""

    session: SessionId
    step: int


Arrival = Envelope | Scores | Failure | Replayed


@dataclass(frozen=True, slots=True)
class RemoteHop:
    """A worker, the stage that is ready there, and where the worker before it reaches it."""

    client: WorkerClient
    key: StageKey
    address: str


class RemoteRoute:
    """The streams to all workers of a route; each tells the coordinator itself when something goes wrong there.

    A later `epoch` of the same route takes the place of an earlier one on the workers: what stages they share goes on, and
    frames of the earlier one are void.
    """

    def __init__(self, loop: EventLoop, hops: Sequence[RemoteHop], route_id: str | None = None, epoch: int = 0) -> None:
        self.hops = tuple(hops)
        self.id = route_id or uuid.uuid4().hex
        self.epoch = epoch
        self.leaving: set[str] = set()  # the ids of workers that said goodbye
        self.streams = False  # whether a worker reads blocks in every sweep
        self._loop = loop
        self.arrived = 0.0  # when what was received last came, by time.monotonic
        self._arrivals: queue.SimpleQueue[tuple[float, Arrival] | None] = queue.SimpleQueue()  # None: somebody went away
        self._streams: list[_Stream] = []
        self._watches: list[asyncio.Task[None]] = []
        self._end: asyncio.Future[None] | None = None  # done when the route is broken
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

    def reserve(self, session: SessionId, size: SequenceSize, num_steps: int = 0) -> list[bool]:
        """Make room for a session of which `num_steps` frames have come back, and return for each hop whether it goes on there.

        Raises BudgetError, and WorkerLostError where a worker went away.
        """

        async def reserve() -> list[pb.ReserveResponse]:
            return await gather_all([hop.client.reserve(hop.key, self.id, session, size, num_steps) for hop in self.hops])

        responses = self._loop.run(self._unless_broken(reserve()))
        self.streams = any(response.streamed_bytes for response in responses)
        return [response.goes_on for response in responses]

    def release(self, session: SessionId) -> None:
        """Forget a session on every worker; with the route they are forgotten anyway."""
        if self._is_closed:
            return

        async def release() -> None:
            await asyncio.gather(*(hop.client.release(hop.key, self.id, session) for hop in self.hops))

        with suppress(LayermeshError):
            self._loop.run(self._unless_broken(release()))

    def send(self, frames: Sequence[Frame], sweep: int, end_hop: int | None = None, deadline: float = 0.0) -> None:
        """Send the frames of one sweep on their way: to the end, or to `end_hop` only.

        A hop that has them for longer than `deadline` seconds counts as lost; 0: none does.
        """
        ours = [replace(frame, epoch=self.epoch) for frame in frames]
        envelopes = [Envelope(self.id, 0, sweep, len(ours), frame, (), end_hop, deadline) for frame in ours]
        parts = [part for envelope in envelopes for part in envelope_parts(envelope)]
        self._loop.loop.call_soon_threadsafe(self._streams[0].send, parts)

    def receive(self, waiting: Callable[[], None], patience: float = math.inf) -> Arrival:
        """Return what comes back next; `waiting` is called now and then meanwhile.

        Raises WorkerLostError where a worker went away or nothing has come for `patience` seconds, and MeshError where one
        cannot go on.
        """
        began = time.monotonic()
        while True:
            if self._broken is not None:
                raise self._broken
            try:
                came = self._arrivals.get(timeout=WAKE_SECONDS)
            except queue.Empty:
                waiting()
                if time.monotonic() - began > patience:
                    raise WorkerLostError(f"nothing came back for {patience:.0f} s, and no worker says why.") from None
                continue
            if came is not None:
                self.arrived, arrival = came
                return arrival

    def close(self) -> None:
        """End the streams, with which the workers forget the route and its sessions."""
        if self._is_closed:
            return

        async def close() -> None:
            for task in self._watches:
                task.cancel()
            await asyncio.gather(*(stream.close() for stream in self._streams), *self._watches, return_exceptions=True)

        self._is_closed = True
        self._broken = self._broken or MeshError("the workers were let go of in the middle of this. Ask again.")
        self._loop.run(close())

    async def _open(self) -> None:
        self._end = asyncio.get_running_loop().create_future()
        hops = [pb.Hop(worker=hop.client.name, address=hop.address, key=hop.key.to_proto()) for hop in self.hops]
        for number, hop in enumerate(self.hops):
            route = pb.Route(version=PROTOCOL_VERSION, id=self.id, epoch=self.epoch, hops=hops, hop=number)
            self._streams.append(_Stream(hop.client, route, self))
        self._watches += [asyncio.create_task(self._watch(client)) for client in {hop.client for hop in self.hops}]
        await asyncio.gather(*(stream.accepted() for stream in self._streams))

    async def _watch(self, client: WorkerClient) -> None:
        self.end(await client.until_lost())

    async def _unless_broken(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what `work` returns; raises why the route is broken as soon as it is."""
        assert self._end is not None
        working: asyncio.Future[T] = asyncio.create_task(work)
        try:
            either: list[asyncio.Future[Any]] = [working, self._end]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                assert self._broken is not None
                raise self._broken
            return working.result()
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    def arrive(self, arrival: Arrival) -> None:
        """Take what came back on one of the streams."""
        self._arrivals.put((time.monotonic(), arrival))

    def end(self, error: LayermeshError) -> None:
        """Note that nothing more can come back, and why."""
        self._broken = self._broken or error
        self._arrivals.put(None)
        if self._end is not None and not self._end.done():
            self._end.set_result(None)

    def fail(self, failure: pb.FrameFailure, client: WorkerClient) -> None:
        """Take what a worker says went wrong: with one frame, with another worker, or with everything."""
        error = to_error(failure.problem, failure.worker[:80] or client.name)
        if 0 < failure.lost_hop <= len(self.hops):
            lost = self.hops[failure.lost_hop - 1].client
            error = WorkerLostError(str(error), lost.worker_id, returns=False)
        elif isinstance(error, ResourceError):
            error = WorkerStarvedError(str(error), client.worker_id)
        if failure.session:
            self.arrive(Failure(SessionId(failure.session), failure.step, error))
        elif isinstance(error, WorkerLostError):
            asyncio.get_running_loop().call_later(BLAME_SECONDS, self.end, error)  # its own stream may say it better
        else:
            self.end(error)


class _Stream:
    """The stream to one worker of `owner`, who is given what comes back, and why nothing comes any more."""

    def __init__(self, client: WorkerClient, route: pb.Route, owner: RemoteRoute) -> None:
        self._client = client
        self._owner = owner
        self._frames, self._scores = FrameAssembler(), ScoresAssembler()
        self._requests: asyncio.Queue[pb.ForwardRequest | None] = asyncio.Queue()  # None: the end
        self._requests.put_nowait(pb.ForwardRequest(route=route))
        self._accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._receive())

    async def accepted(self) -> None:
        """Return when the worker knows the route; raises MeshError where it does not take it."""
        try:
            await asyncio.wait_for(asyncio.shield(self._accepted), OPEN_SECONDS)
        except TimeoutError as error:
            raise WorkerLostError(
                f"worker {self._client.name} did not take the route in time. Is it overloaded?", self._client.worker_id
            ) from error

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
        client, owner = self._client, self._owner
        error: LayermeshError = WorkerLostError(
            f"worker {client.name} ended the connection. Look at its screen.", client.worker_id
        )
        try:
            async with client.forward(self._outgoing()) as responses:
                async for response in responses:
                    self._take(response)
        except LayermeshError as failed:
            error = failed
            if self._accepted.done() and not isinstance(failed, WorkerLostError):  # it is about what it sent
                error = WorkerLostError(str(failed), client.worker_id, returns=False)
        finally:  # also where its channel was closed
            if not self._accepted.done():
                self._accepted.set_exception(error)
            owner.end(error)

    def _take(self, response: pb.ForwardResponse) -> None:
        """Hand on what came back; raises the worker's error where it does not take the route."""
        arrival: Arrival | None = None
        match response.WhichOneof("kind"):
            case "accepted" if not self._accepted.done():
                self._accepted.set_result(None)
            case "frame":
                arrival = self._frames.add(response.frame)
            case "logits":
                arrival = self._scores.add(response.logits)
            case "replayed":
                arrival = Replayed(SessionId(response.replayed.session), response.replayed.step)
            case "leaving":
                self._owner.leaving.add(self._client.worker_id)
            case "failure" if response.failure.session or self._accepted.done():
                self._owner.fail(response.failure, self._client)
            case "failure":
                raise to_error(response.failure.problem, response.failure.worker[:80] or self._client.name)
        if arrival is not None:
            self._owner.arrive(checked(arrival, self._client.name))

    async def _outgoing(self) -> AsyncIterator[pb.ForwardRequest]:
        while (request := await self._requests.get()) is not None:
            yield request
