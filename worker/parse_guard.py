"""Messages that cannot be read: an answer for whoever sent them, and no fault of ours in the log."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from layermesh.shared.errors import MeshError

_SAID = "a message cannot be read. Is it of another version?"
Handler = Any  # grpc.RpcMethodHandler, whose fields the stubs do not have


class UnreadableError(MeshError):
    """What came is no message of this kind."""


class ParseGuard(grpc.aio.ServerInterceptor):
    """Makes INVALID_ARGUMENT of messages that cannot be read; without it grpc.aio says UNKNOWN, and logs a traceback."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Return the handler that `continuation` finds, guarded."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        parse = _forgiving(handler.request_deserializer)
        if not handler.request_streaming and not handler.response_streaming:
            return grpc.unary_unary_rpc_method_handler(_one_to_one(handler.unary_unary), parse, handler.response_serializer)
        if not handler.request_streaming:
            return grpc.unary_stream_rpc_method_handler(_one_to_many(handler.unary_stream), parse, handler.response_serializer)
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                _many_to_many(handler.stream_stream), parse, handler.response_serializer
            )
        return handler


class _Requests:
    """The messages of a stream, up to the first that cannot be read."""

    def __init__(self, requests: AsyncIterator[Any]) -> None:
        self.is_broken = False
        self._requests = requests

    def __aiter__(self) -> "_Requests":
        return self

    async def __anext__(self) -> Any:
        request = await anext(self._requests)
        if isinstance(request, UnreadableError):
            self.is_broken = True
            raise request
        return request


def _forgiving(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Return what parses as `deserialize` does, and returns an UnreadableError where that fails."""

    def parse(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return UnreadableError(_SAID)

    return parse


def _one_to_one(behaviour: Any) -> Any:
    async def guarded(request: Any, context: Any) -> Any:
        if isinstance(request, UnreadableError):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, _SAID)
        return await behaviour(request, context)

    return guarded


def _one_to_many(behaviour: Any) -> Any:
    async def guarded(request: Any, context: Any) -> AsyncIterator[Any]:
        if isinstance(request, UnreadableError):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, _SAID)
        async with aclosing(behaviour(request, context)) as responses:
            async for response in responses:
                yield response

    return guarded


def _many_to_many(behaviour: Any) -> Any:
    async def guarded(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        readable = _Requests(requests)
        try:
            async with aclosing(behaviour(readable, context)) as responses:
                async for response in responses:
                    yield response
        except UnreadableError:
            pass
        if readable.is_broken:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, _SAID)

    return guarded
