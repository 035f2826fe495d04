"""One worker as the coordinator talks to it."""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio

from layermesh import __version__
from layermesh.coordinator.planning.machines import HANDLING_SECONDS, Link
from layermesh.coordinator.preparation import Progress, ReadPart, converse
from layermesh.protos import mesh_pb2 as pb
from layermesh.protos.mesh_pb2_grpc import MembershipServiceStub, WorkerServiceStub
from layermesh.shared.allocator import keeping_memory
from layermesh.shared.channels import Channels, pinned
from layermesh.shared.errors import (
    AuthenticationError,
    AwayError,
    BusyError,
    CheckpointError,
    LayermeshError,
    MeshError,
    ResourceError,
    WorkerLostError,
)
from layermesh.shared.exchange import exchange
from layermesh.shared.heartbeat import LONG_SILENCE_SECONDS, SILENCE_SECONDS, until_silent
from layermesh.shared.problems import WorkerBudgetError, to_error
from layermesh.shared.protocol import PROTOCOL_VERSION
from layermesh.shared.security.nodes import Member, NodeId
from layermesh.shared.security.removals import SignedRemovals
from layermesh.shared.stage_key import StageKey

if TYPE_CHECKING:
    from layermesh.shared.footprint import SequenceSize
    from layermesh.shared.frames import SessionId

T = TypeVar("T")

DESCRIBE_SECONDS = 3.0
MEMBERSHIP_SECONDS = 2.0
RESERVE_SECONDS = 600.0  # resident blocks may have to be laid out anew
BUSY_SECONDS = 120.0  # how long to wait for room that others take
NUM_ECHOES = 7
ECHO_BYTES = 1 << 20


class WorkerClient:
    """Calls the worker at `address`, over a connection to that node of the mesh and no other once `describe` knows which it is.

    Errors come as MeshError and its kin, or AuthenticationError, and name the worker.
    """

    def __init__(self, address: str, channels: Channels | None = None) -> None:
        self.address = address
        self.name = address
        self.worker_id = ""
        self.member: Member | None = None  # of the mesh; None for a worker that is not encrypted, on this machine
        self._channels = channels or Channels()
        self._channel: grpc.aio.Channel | None = None
        self._cut: WorkerLostError | None = None

    @property
    def who(self) -> str:
        """Its name and where it is."""
        return self.name if self.name == self.address else f"{self.name} at {self.address}"

    @property
    def node(self) -> NodeId | None:
        """Which node of the mesh it is."""
        return None if self.member is None else self.member.node

    async def describe(self) -> pb.DescribeResponse:
        """Ask who it is. Raises MeshError for one that does not answer or speaks another version, AuthenticationError with the
        reason for one that may not take part.
        """
        known = self._channel
        if known is None:
            await self._connect()
        try:
            response = await self._describe()
        except AwayError:
            if known is None:
                raise
            await self._connect()  # whoever is there by now
            await known.close()  # not earlier: streams of one that is leaving may still be of use
            response = await self._describe()
        self.name = response.name[:80] or self.address
        self.worker_id = response.worker_id
        if response.version != PROTOCOL_VERSION:
            raise MeshError(
                f"worker {self.who} runs layermesh {response.software[:40]}, which speaks version "
                f"{response.version} of the protocol; this is {__version__}, which speaks {PROTOCOL_VERSION}. Install the "
                "same layermesh on both."
            )
        if self.node is not None and response.worker_id != self.node:
            raise AuthenticationError(f"worker {self.who} says it is another than its certificate does. Pair it again.")
        return response

    async def measure_link(self) -> Link:
        """Measure the way there: seconds for a small frame, and bytes per second of a large message."""
        trips = []
        with self._calling():
            for number in range(NUM_ECHOES):
                began = time.monotonic()
                await self._stub.Echo(pb.EchoRequest(num_bytes=0), timeout=DESCRIBE_SECONDS)
                if number:  # the first one meets a cold connection
                    trips.append(time.monotonic() - began)
            began = time.monotonic()
            await self._stub.Echo(pb.EchoRequest(num_bytes=ECHO_BYTES), timeout=10 * DESCRIBE_SECONDS)
            carrying = time.monotonic() - began
        trip = sorted(trips)[len(trips) // 2]
        return Link(trip / 2 + HANDLING_SECONDS, ECHO_BYTES / max(carrying - trip, 1e-6))

    async def prepare(self, start: pb.PrepareStart, read: ReadPart, progress: Progress) -> pb.PrepareReady:
        """Have it make a span ready, and send it what it lacks.

        Raises WorkerLostError where its disk, its files or its memory do not allow it, WorkerBudgetError where the memory that
        it may take does not, CheckpointError where this machine's own files cannot be read, and what else it complains about.
        """
        with self._calling(), keeping_memory():
            ended = await converse(self._stub.Prepare, start, read, progress)
        if ended is None:
            raise WorkerLostError(
                f"worker {self.name} ended the connection while it made its layers ready. Look at its screen.", self.worker_id
            )
        if ended.HasField("failed"):
            raise self._unable(self._error(ended.failed))
        return ended.ready

    async def reserve(
        self, key: StageKey, route: str, session: "SessionId", size: "SequenceSize", num_steps: int = 0
    ) -> pb.ReserveResponse:
        """Make room for a session, waiting for a while where others take it; `num_steps` of its frames have come back.

        Raises BudgetError.
        """
        request = pb.ReserveRequest(
            key=key.to_proto(),
            session=session,
            num_tokens=size.num_tokens,
            num_new=size.num_new,
            route=route,
            num_steps=num_steps,
        )
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            with self._calling():
                response: pb.ReserveResponse = await self._stub.Reserve(request, timeout=RESERVE_SECONDS)
            if not response.HasField("problem"):
                return response
            if not response.problem.busy or time.monotonic() > deadline:
                raise self._error(response.problem)
            await asyncio.sleep(0.1)

    async def release(self, key: StageKey, route: str, session: "SessionId") -> None:
        """Forget a session; a worker that is gone has forgotten it."""
        request = pb.ReleaseRequest(key=key.to_proto(), session=session, route=route)
        try:
            await self._stub.Release(request, timeout=DESCRIBE_SECONDS)
        except (grpc.aio.AioRpcError, LayermeshError):
            return

    @asynccontextmanager
    async def forward(self, requests: AsyncIterator[pb.ForwardRequest]) -> AsyncIterator[AsyncIterable[pb.ForwardResponse]]:
        """Open a stream of frames for as long as the context lasts."""
        with self._calling():
            async with exchange(self._stub.Forward(), requests) as responses:
                yield responses

    async def tell_removed(self, signed: SignedRemovals) -> int:
        """Tell it who was removed, and return the number of the newest list that it knows."""
        request = pb.RemoveRequest(body=signed.body, signature=signed.signature)
        with self._calling():
            response: pb.RemoveResponse = await self._membership.Remove(request, timeout=MEMBERSHIP_SECONDS)
        return response.number

    async def renew(self, issue: Callable[[bytes], bytes]) -> None:
        """Give it a new certificate: the one that `issue` makes (in DER) of its request (PKCS #10, in DER)."""
        with self._calling():
            asked: pb.BeginRenewalResponse = await self._membership.BeginRenewal(
                pb.BeginRenewalRequest(), timeout=MEMBERSHIP_SECONDS
            )
            certificate = await asyncio.to_thread(issue, asked.request)
            await self._membership.FinishRenewal(pb.FinishRenewalRequest(certificate=certificate), timeout=MEMBERSHIP_SECONDS)

    async def cut_off(self) -> None:
        """Break off everything with it, since it was removed from the mesh."""
        self._cut = WorkerLostError(f"worker {self.who} was removed from the mesh.", self.worker_id, returns=False)
        await self.close()

    async def while_alive(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what `work` returns, which may keep the worker busy. Raises WorkerLostError once it is not there any more."""
        working = asyncio.ensure_future(work)
        silence = asyncio.create_task(self.until_lost(LONG_SILENCE_SECONDS))
        try:
            await asyncio.wait([working, silence], return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise silence.result()
        finally:
            working.cancel()
            silence.cancel()
            await asyncio.gather(working, silence, return_exceptions=True)

    async def until_lost(self, silence: float = SILENCE_SECONDS) -> WorkerLostError:
        """Return once the worker is not there any more, or silent for so many seconds, with what to say of that."""
        async with self._open() as channel:  # of its own: what is under way on the other must not delay it
            gone = await until_silent(channel, silence)
        return WorkerLostError(
            f"worker {self.who} does not answer any more ({gone.why}).", self.worker_id, crashed=not gone.is_silence
        )

    def explain(self, error: grpc.aio.AioRpcError) -> MeshError:
        """Return what a failed call means to a user."""
        said = " ".join((error.details() or error.code().name).split())[:300]
        if error.code() is grpc.StatusCode.PERMISSION_DENIED:
            return MeshError(f"worker {self.who} refused this machine: {said}.")
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            return AwayError(
                f"worker {self.who} does not answer ({said}). Is it running, and is the address right? "
                "`layermesh status` shows who is there.",
                self.worker_id,
                crashed=True,
            )
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return WorkerLostError(f"worker {self.who} did not answer in time. Is it overloaded, or asleep?", self.worker_id)
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return MeshError(f"what answers at {self.address} is no layermesh worker of this version. Check the address.")
        if error.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
            return WorkerLostError(f"worker {self.who} broke off a call ({said}).", self.worker_id)
        return MeshError(f"worker {self.who}: {said}.")

    async def close(self) -> None:
        """Let go of it."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def _connect(self) -> None:
        """Find out who is there, and open a connection to nobody else."""
        try:
            self.member = await self._channels.meet(self.address, f"worker {self.who}")
        except WorkerLostError as error:
            error.worker = self.worker_id
            raise
        self._channel = self._open()
        self._cut = None

    def _open(self) -> grpc.aio.Channel:
        return self._channels.open(pinned(self.address, self.member))

    async def _describe(self) -> pb.DescribeResponse:
        with self._calling():
            response: pb.DescribeResponse = await self._stub.Describe(
                pb.DescribeRequest(version=PROTOCOL_VERSION), timeout=DESCRIBE_SECONDS
            )
        return response

    @property
    def _stub(self) -> WorkerServiceStub:
        return WorkerServiceStub(self._connected())

    @property
    def _membership(self) -> MembershipServiceStub:
        return MembershipServiceStub(self._connected())

    def _connected(self) -> grpc.aio.Channel:
        if self._channel is None:
            raise self._cut or MeshError(f"worker {self.who} was let go of.")
        return self._channel

    def _unable(self, error: LayermeshError) -> LayermeshError:
        """Return what a failed preparation is to the mesh: others may be able to do what this one is not."""
        is_its_own = isinstance(error, ResourceError | CheckpointError | MeshError)
        if not is_its_own or isinstance(error, BusyError | WorkerBudgetError):
            return error
        return WorkerLostError(str(error), self.worker_id, returns=False)

    def _error(self, problem: pb.Problem) -> LayermeshError:
        error = to_error(problem, self.name)
        if isinstance(error, WorkerBudgetError):
            error.worker_id = self.worker_id
        return error

    @contextmanager
    def _calling(self) -> Iterator[None]:
        try:
            yield
        except asyncio.CancelledError as error:  # by a connection that was closed, or by whoever waits
            task = asyncio.current_task()
            if self._cut is None or (task is not None and task.cancelling()):
                raise
            raise self._cut from error
        except grpc.aio.AioRpcError as error:
            raise self.explain(error) from error
