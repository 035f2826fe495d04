"""What a worker answers over gRPC: thin, every decision is made elsewhere."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from layermesh import __version__
from layermesh.protos import mesh_pb2 as pb
from layermesh.protos.mesh_pb2_grpc import WorkerServiceServicer
from layermesh.shared.channels import Channels
from layermesh.shared.chunks import read_chunks
from layermesh.shared.errors import BudgetError, BusyError, CheckpointError, LayermeshError, MeshError
from layermesh.shared.footprint import SequenceSize
from layermesh.shared.frames import SessionId
from layermesh.shared.machine_profile import MachineProfile
from layermesh.shared.problems import to_problem
from layermesh.shared.profile_wire import profile_to_proto
from layermesh.shared.protocol import PROTOCOL_VERSION
from layermesh.shared.stage_key import StageKey
from layermesh.shared.wire import MAX_NAME, MAX_TOKENS
from layermesh.worker.bounded_frames import BoundedFrames, Inflow
from layermesh.worker.finishing import to_its_end
from layermesh.worker.host import Host, LiveStage
from layermesh.worker.limits import check_sessions
from layermesh.worker.outbox import Outbox
from layermesh.worker.patience import without_silence
from layermesh.worker.preparing import Preparer
from layermesh.worker.routes import RouteHere, Routes
from layermesh.worker.store import Store, StoredModel

MAX_ECHO_BYTES = 2 << 20
FAREWELL_SECONDS = 5.0
if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
else:
    Context = grpc.aio.ServicerContext


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a worker is: `id` lasts, whatever the `name` and the `addresses` (HOST:PORT) are."""

    id: str
    name: str
    device: str
    addresses: Callable[[], list[str]]


class WorkerService(WorkerServiceServicer):
    """The worker's side of protos/mesh.proto.

    `slowdowns` says, by fingerprint, by how much models take longer than `profile` has it; it may read a file.
    """

    def __init__(
        self,
        identity: Identity,
        profile: MachineProfile,
        host: Host,
        store: Store,
        routes: Routes,
        slowdowns: Callable[[], Mapping[str, float]] = dict,
        channels: Channels | None = None,
    ) -> None:
        self._identity = identity
        self._profile = profile
        self._host = host
        self._store = store
        self._routes = routes
        self._slowdowns = slowdowns
        self._preparer = Preparer(host, store, channels or Channels())
        self._inflow = Inflow()

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:
        """Who this is, what it has and what it runs; any version may ask."""
        return pb.DescribeResponse(
            version=PROTOCOL_VERSION,
            worker_id=self._identity.id,
            name=self._identity.name,
            software=__version__,
            device=self._identity.device,
            profile=profile_to_proto(self._profile),
            running=[_running(live) for live in self._host.stages],
            stored=await asyncio.to_thread(self._stored),
            addresses=self._identity.addresses(),
            slowdown=await asyncio.to_thread(self._slowdowns),
            leaving=self._routes.is_leaving,
        )

    async def Echo(self, request: pb.EchoRequest, context: Context) -> pb.EchoResponse:
        """As many bytes as asked for."""
        return pb.EchoResponse(payload=bytes(min(request.num_bytes, MAX_ECHO_BYTES)))

    async def Prepare(
        self,
        request_iterator: AsyncIterator[pb.PrepareRequest],
        context: Context,
    ) -> AsyncIterator[pb.PrepareResponse]:
        """Make a span ready, and tell how far that is."""
        first = await anext(request_iterator, None)
        if first is None or first.WhichOneof("kind") != "start":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a preparation begins with what to prepare")
        assert first is not None
        await _check_version(first.start.version, context)
        caller = _Caller(request_iterator)
        task = asyncio.create_task(self._prepare(first.start, caller))
        try:
            async for response in caller.responses():
                yield response
            await caller.hear_out()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def Forward(
        self,
        request_iterator: AsyncIterator[pb.ForwardRequest],
        context: Context,
    ) -> AsyncIterator[pb.ForwardResponse]:
        """Carry frames for as long as the stream lasts; its routes end with it."""
        responses: Outbox[pb.ForwardResponse] = Outbox()
        routes: list[tuple[RouteHere, int]] = []
        task = asyncio.create_task(self._receive(request_iterator, responses, routes))
        try:
            async for response in responses.messages():
                yield response
            if responses.is_overrun:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "what comes back is read too slowly")
        finally:
            task.cancel()
            for here, hop in routes:
                await to_its_end(self._routes.leave(here, hop))  # gRPC may cancel a call more than once

    async def Reserve(self, request: pb.ReserveRequest, context: Context) -> pb.ReserveResponse:
        """Make room for a session."""
        others = False
        try:
            if not 0 < len(request.session) <= MAX_NAME or request.num_tokens > MAX_TOKENS * 16:
                raise MeshError(f"a session of {request.num_tokens} tokens makes no sense.")
            live = self._host.get(StageKey.parse(request.key))
            routes = live.sessions.values()
            check_sessions([each.sessions for each in self._host.stages], SessionId(request.session), request.route)
            others = len(routes) > 0 and request.route not in routes  # one's own need not be waited for: they end by themselves
            size = SequenceSize(request.num_tokens, request.num_new)
            session = SessionId(request.session)
            residency, goes_on = await self._host.reserve(live, session, request.route, size, request.num_steps)
        except (LayermeshError, ValueError) as error:
            busy = isinstance(error, BudgetError) and others
            return pb.ReserveResponse(problem=to_problem(error, busy=busy))
        return pb.ReserveResponse(
            resident_bytes=residency.resident_bytes, streamed_bytes=residency.streamed_bytes, goes_on=goes_on
        )

    async def Release(self, request: pb.ReleaseRequest, context: Context) -> pb.ReleaseResponse:
        """Forget a session; one that is not known, or came on another route, is left alone."""
        try:
            live = self._host.find(StageKey.parse(request.key))
        except MeshError:
            live = None
        session = SessionId(request.session)
        if live is not None and live.sessions.get(session) == request.route:
            await self._host.release(live, session)
        return pb.ReleaseResponse()

    async def Fetch(self, request: pb.FetchRequest, context: Context) -> AsyncIterator[pb.FetchResponse]:
        """Hand out a part of a model to another worker."""
        await _check_version(request.version, context)
        stored = await asyncio.to_thread(self._find_stored, request.fingerprint)
        if stored is None or request.part not in stored.manifest.parts or stored.missing([request.part]):
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such part here")
        assert stored is not None
        with self._store.in_use(request.fingerprint):
            try:
                async for response in read_chunks(stored.read(request.part, request.offset), request.part, pb.FetchResponse):
                    yield response
            except CheckpointError as error:
                await context.abort(grpc.StatusCode.DATA_LOSS, str(error))

    def _find_stored(self, fingerprint: str) -> StoredModel | None:
        try:
            return self._store.get(fingerprint)
        except CheckpointError:  # it is no fingerprint
            return None

    def _stored(self) -> list[pb.StoredModel]:
        return [
            pb.StoredModel(fingerprint=model.fingerprint, name=model.name, num_bytes=model.num_bytes, parts=model.parts)
            for model in self._store.models()
        ]

    async def _prepare(self, start: pb.PrepareStart, caller: "_Caller") -> None:
        try:
            if start.route:
                is_larger = start.most_bytes and self._host.is_larger(StageKey.parse(start.key), start.most_bytes)
                keeps = start.keeps if is_larger else (start.key, *start.keeps)
                await self._routes.keep_only(start.route, [StageKey.parse(key) for key in keeps])
            prepared = await self._preparer.prepare(start, caller)
        except Exception as error:  # whatever it was, the caller is told
            busy = isinstance(error, BudgetError | BusyError) and any(live.in_use for live in self._host.stages)
            caller.end(pb.PrepareResponse(failed=to_problem(error, busy=busy)))
        else:
            caller.end(pb.PrepareResponse(ready=_ready(prepared.stage, prepared.fetched_bytes)))

    async def _receive(
        self,
        requests: AsyncIterator[pb.ForwardRequest],
        responses: Outbox[pb.ForwardResponse],
        routes: list[tuple[RouteHere, int]],
    ) -> None:
        frames = BoundedFrames(self._inflow)
        try:
            async for request in requests:
                if request.WhichOneof("kind") == "route":
                    here = self._routes.enter(request.route, responses.put)
                    routes.append((here, request.route.hop))
                    responses.put(pb.ForwardResponse(accepted=pb.RouteAccepted()))
                elif (envelope := frames.add(request.frame)) is not None:
                    self._routes.run(envelope)
                await responses.ease()
        except Exception as error:  # whatever came, whoever sent it is told
            failure = pb.FrameFailure(worker=self._identity.name, problem=to_problem(error))
            responses.put(pb.ForwardResponse(failure=failure))
        finally:
            frames.drop()
            responses.end()


class _Caller:
    """Whoever called Prepare: asked for parts and told of progress on the same stream."""

    def __init__(self, requests: AsyncIterator[pb.PrepareRequest]) -> None:
        self._requests = requests
        self._responses: asyncio.Queue[pb.PrepareResponse | None] = asyncio.Queue()

    async def want(self, part: str, offset: int) -> AsyncIterator[pb.Chunk]:
        self._responses.put_nowait(pb.PrepareResponse(wanted=pb.Wanted(part=part, offset=offset)))
        async for request in without_silence(self._requests, "the coordinator"):
            chunk = request.chunk
            if chunk.part != part:
                raise MeshError(f"asked for {part}, the coordinator sent {chunk.part[:80]!r}.")
            yield chunk
            if chunk.sha256:
                return
        raise MeshError(f"the coordinator went away while it sent {part}.")

    def progress(self, done_bytes: int, total_bytes: int, doing: str) -> None:
        progress = pb.PrepareProgress(done_bytes=done_bytes, total_bytes=total_bytes, doing=doing)
        self._responses.put_nowait(pb.PrepareResponse(progress=progress))

    def end(self, response: pb.PrepareResponse) -> None:
        self._responses.put_nowait(response)
        self._responses.put_nowait(None)

    async def hear_out(self) -> None:
        """Take what still comes until the caller ends its side: a call that ends in the middle of that fails over there."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS):
                async for _ in self._requests:
                    pass

    async def responses(self) -> AsyncIterator[pb.PrepareResponse]:
        while (response := await self._responses.get()) is not None:
            yield response


def _ready(live: LiveStage, fetched_bytes: int) -> pb.PrepareReady:
    return pb.PrepareReady(
        fetched_bytes=fetched_bytes,
        resident_bytes=live.residency.resident_bytes,
        streamed_bytes=live.residency.streamed_bytes,
    )


def _running(live: LiveStage) -> pb.RunningSpan:
    return pb.RunningSpan(
        key=live.key.to_proto(),
        num_sessions=len(live.sessions),
        resident_bytes=live.residency.resident_bytes,
        streamed_bytes=live.residency.streamed_bytes,
        seconds_per_token=live.runner.seconds_per_token or live.seconds_per_token,
        num_routes=len(live.routes),
        model=live.model,
    )


async def _check_version(version: int, context: Context) -> None:
    if version != PROTOCOL_VERSION:
        await context.abort(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"it speaks version {PROTOCOL_VERSION} of the protocol (layermesh {__version__}), and was spoken to in "
            f"{version}. Install the same layermesh on both",
        )
