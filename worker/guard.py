"""Who may call what of a worker: decided by the certificate that a caller has shown, before anything of the call is read."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from typing import Any, Final

import grpc
import grpc.aio

from layermesh.protos import mesh_pb2 as pb
from layermesh.shared.errors import AuthenticationError
from layermesh.shared.security.nodes import NodeId, Role, read_names

_SERVICE: Final = "/layermesh.v1.WorkerService/"
FORWARD: Final = f"{_SERVICE}Forward"
FOR_WORKERS: Final = frozenset(
    {
        f"{_SERVICE}Describe",
        f"{_SERVICE}Echo",
        f"{_SERVICE}Fetch",
        FORWARD,
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
    }
)
_NAMES: Final = "x509_subject_alternative_name"
_REMOVED: Final = "this node was removed from the mesh"
Context = Any


class Guard(grpc.aio.ServerInterceptor):
    """Lets through what `allows` lets through; nobody who was `removed`, and breaks off what they have under way."""

    def __init__(self, removed: Callable[[], AbstractSet[NodeId]]) -> None:
        self._removed = removed
        self._calls: dict[NodeId, set[asyncio.Task[Any]]] = {}

    @property
    def num_calls(self) -> int:
        """How many calls are under way."""
        return sum(map(len, self._calls.values()))

    def cut(self, nodes: AbstractSet[NodeId]) -> None:
        """End all calls of `nodes`, at once."""
        for node in nodes & self._calls.keys():
            for call in tuple(self._calls[node]):
                call.cancel()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the handler of a call, behind the question who calls."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = str(handler_call_details.method)
        make = getattr(grpc, f"{_arity(handler)}_rpc_method_handler")
        inner = getattr(handler, _arity(handler))
        guard = self._guard_stream if handler.response_streaming else self._guard_one
        return make(
            guard(method, inner),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _guard_one(self, method: str, inner: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(request: Any, context: Context) -> Any:
            node, role = await self._admit(method, context)
            with self._under_way(node):
                try:
                    return await inner(_checked(request, method, role), context)
                except asyncio.CancelledError:
                    await self._say_why(node, context)
                    raise

        return call

    def _guard_stream(self, method: str, inner: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            node, role = await self._admit(method, context)
            with self._under_way(node):
                try:
                    async for response in inner(_checked(request, method, role), context):
                        yield response
                except asyncio.CancelledError:
                    await self._say_why(node, context)
                    raise

        return call

    async def _admit(self, method: str, context: Context) -> tuple[NodeId, Role]:
        """Return who calls, if they may; TLS has checked by then that our authority has signed what they show."""
        try:
            node, role = read_names([name.decode("ascii") for name in context.auth_context().get(_NAMES, ())])
        except ValueError:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "a certificate that names no node of a mesh")
            raise
        if node in self._removed():
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, _REMOVED)
        if not allows(method, role):
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED, f"a {role} may not call {method.rpartition('/')[2]} of a worker"
            )
        return node, role

    @contextmanager
    def _under_way(self, node: NodeId) -> Iterator[None]:
        task = asyncio.current_task()
        assert task is not None
        calls = self._calls.setdefault(node, set())
        calls.add(task)
        try:
            yield
        finally:
            calls.discard(task)
            if not calls and self._calls.get(node) is calls:
                del self._calls[node]

    async def _say_why(self, node: NodeId, context: Context) -> None:
        if node in self._removed():
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, _REMOVED)


def allows(method: str, role: Role) -> bool:
    """Whether a node with this role may call `method`: the coordinator all, workers what they need of each other."""
    return role == "coordinator" or method in FOR_WORKERS


def _checked(request: Any, method: str, role: Role) -> Any:
    return _frames_only(request) if method == FORWARD and role == "worker" else request


async def _frames_only(requests: AsyncIterator[pb.ForwardRequest]) -> AsyncIterator[pb.ForwardRequest]:
    async for request in requests:
        if request.WhichOneof("kind") == "route":
            raise AuthenticationError("a worker may not open a route: that is the coordinator's to do.")
        yield request


def _arity(handler: Any) -> str:
    return f"{'stream' if handler.request_streaming else 'unary'}_{'stream' if handler.response_streaming else 'unary'}"
