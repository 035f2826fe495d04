"""Noticing within seconds that somebody is not there any more, however quiet the line is otherwise."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

BEAT_SECONDS: Final = 0.3  # from one answer to the next question
SILENCE_SECONDS: Final = 2.2  # after which nobody is there
LONG_SILENCE_SECONDS: Final = (
    10.0  # of one that writes and hashes gigabytes, for which a system short of memory stops everything
)
LATE_SECONDS: Final = 0.5  # by which this process itself may be late: then it is not the other one's fault


@dataclass(frozen=True, slots=True)
class Gone:
    """Why somebody is not there any more: `is_silence` unless a connection was refused or broke."""

    why: str
    is_silence: bool


async def until_silent(channel: grpc.aio.Channel, silence: float = SILENCE_SECONDS) -> Gone:
    """Ask whoever is behind `channel` how they are until they do not answer for `silence` seconds, and return why that may be.

    Silence counts only while this process is awake: one that was stopped or starved itself asks again first.
    """
    stub: Any = HealthStub(channel)
    while True:
        began = time.monotonic()
        try:
            await stub.Check(health_pb2.HealthCheckRequest(), timeout=silence)
        except grpc.aio.AioRpcError as error:
            slept = time.monotonic() - began > silence + LATE_SECONDS
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:  # busy, and alive
                await asyncio.sleep(BEAT_SECONDS)
                continue
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and not slept:
                return Gone(f"nothing was heard of it for {silence:.0f} s", is_silence=True)
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                return Gone(" ".join((error.details() or error.code().name).split())[:200], is_silence=False)
        else:
            await asyncio.sleep(BEAT_SECONDS)
