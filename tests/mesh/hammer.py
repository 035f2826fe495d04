"""Whoever sends a worker what it should never get, over real connections, as fast as it takes it."""

import asyncio
import itertools
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field

import grpc.aio

from layermesh.protos import mesh_pb2 as pb
from layermesh.shared.grpc_options import CHANNEL_OPTIONS
from tests.mesh.mutations import mutated

SERVICE = "/layermesh.v1.WorkerService"
SECONDS = 30.0  # in which whatever was sent has to have an answer
HALF_OPEN_SECONDS = 0.05  # after which a call is left in the middle of it
AT_ONCE = 8
TOO_MUCH = bytes(5 << 20)


@dataclass
class Target:
    """What a hostile machine knows of a worker, who may run a stage with that key."""

    address: str
    key: pb.SpanKey
    manifest: bytes = b""


@dataclass
class Outcome:
    """How many messages were sent, what came back by kind, and the first that was not answered in time."""

    num_messages: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    silent: list[str] = field(default_factory=list)


@dataclass
class Attack:
    """Messages of one call of `method`; `seed` makes it again. Half open: nothing says that they are all there will be."""

    seed: int
    method: str
    messages: list[bytes]
    half_open: bool = False


def attacks(target: Target, seed: int) -> Iterator[Attack]:
    """Yield calls without end; those of one seed are always the same."""
    return (make(target, number) for number in itertools.count(seed * 1_000_000_000))


def make(target: Target, seed: int) -> Attack:
    """Make the call with that seed."""
    rng = random.Random(seed)
    method = rng.choice(["Forward"] * 6 + ["Prepare", "Reserve", "Reserve", "Release", "Fetch", "Describe", "Echo", "None"])
    messages = MAKERS[method](target, rng)
    if rng.random() < 0.002:
        messages.insert(rng.randrange(len(messages) + 1), TOO_MUCH)
    if rng.random() < 0.1:
        rng.shuffle(messages)
    return Attack(seed, method, messages, half_open=rng.random() < 0.1)


def _forward(target: Target, rng: random.Random) -> list[bytes]:
    """A route, or what is none, and frames of sessions that somebody may have made room for, some with something wrong."""
    hops = [pb.Hop(worker="w0", address="127.0.0.1:1", key=target.key)]
    route = pb.ForwardRequest(route=pb.Route(version=1, id=f"odd-{rng.randrange(4)}", epoch=rng.randrange(9), hops=hops))
    frames = []
    for number in range(rng.randint(0, 40)):
        sizes = [1, rng.randint(1, 3), 64]
        header = pb.FrameHeader(
            route=route.route.id, epoch=route.route.epoch, session=f"s{rng.randrange(3)}", step=number, position=number,
            token_ids=[rng.randrange(300)], sweep=number, sweep_size=rng.choice([1, 1, 1, 2, 5000]), bare=True,
            tensors=[pb.TensorSpec(dtype=pb.D_TYPE_FLOAT32, shape=sizes)],
        )  # fmt: skip
        data = rng.randbytes(4 * sizes[1] * 64)
        if rng.random() < 0.5:  # as the first stage takes it
            header.ClearField("tensors")
            header.bare, data = False, b""
        frames.append(pb.ForwardRequest(frame=pb.FramePart(header=header, data=data, last=rng.random() < 0.95)))
    # Most frames are whole: one that is none ends its stream, and those behind it are never looked at.
    made = [frame.SerializeToString() if rng.random() < 0.9 else mutated(frame, rng) for frame in frames]
    return [route.SerializeToString() if rng.random() < 0.7 else mutated(route, rng), *made]


def _prepare(target: Target, rng: random.Random) -> list[bytes]:
    """Somebody who wants a stage of a model that nobody has, or more of the one that is there than it has.

    A part that it has would be made ready, and kept for a while, as it should.
    """
    key = pb.SpanKey()
    key.CopyFrom(target.key)
    key.end = rng.choice([60_000, 2**32 - 1])
    start = pb.PrepareStart(version=1, key=key, model=rng.choice(["/etc/passwd", "x", "../x", "a/b"]))
    known = pb.PrepareRequest(start=start).SerializeToString()
    start.key.fingerprint = rng.randbytes(32).hex()
    unknown = pb.PrepareRequest(start=start)
    chunks = [pb.PrepareRequest(chunk=pb.Chunk(part="manifest", data=target.manifest[:4000], sha256=b"1"))]
    chunks += [pb.PrepareRequest(chunk=pb.Chunk(part="../../x", data=b"x", sha256=b"1")) for _ in range(rng.randint(0, 3))]
    begin = rng.choice([known, unknown.SerializeToString(), mutated(unknown, rng), mutated(unknown, rng)])
    return [begin, *(mutated(chunk, rng) for chunk in chunks)]


def _reserve(target: Target, rng: random.Random) -> list[bytes]:
    asked = pb.ReserveRequest(
        key=target.key, session=f"s{rng.randrange(3)}", num_tokens=8, num_new=8, route=f"odd-{rng.randrange(4)}"
    )
    return [asked.SerializeToString() if rng.random() < 0.3 else mutated(asked, rng)]


def _fetch(target: Target, rng: random.Random) -> list[bytes]:
    part = rng.choice(["../../etc/passwd", "rest", "layer 0", "manifest", "/etc/passwd"])
    return [mutated(pb.FetchRequest(version=1, fingerprint=target.key.fingerprint, part=part, offset=1 << 40), rng)]


MAKERS: dict[str, Callable[[Target, random.Random], list[bytes]]] = {
    "Forward": _forward,
    "Prepare": _prepare,
    "Reserve": _reserve,
    "Release": lambda target, rng: [mutated(pb.ReleaseRequest(key=target.key, session=f"s{rng.randrange(3)}"), rng)],
    "Fetch": _fetch,
    "Describe": lambda _target, rng: [mutated(pb.DescribeRequest(version=1), rng)],
    "Echo": lambda _target, rng: [mutated(pb.EchoRequest(payload=b"x", num_bytes=9), rng)],
    "None": lambda _target, rng: [rng.randbytes(9)],  # a method that there is not
}


async def hammer(target: Target, made: Iterator[Attack], num_messages: int) -> Outcome:
    """Make the calls that are `made`, several at once, until `num_messages` were sent, and return what came of them."""
    outcome = Outcome()
    async with grpc.aio.insecure_channel(target.address, CHANNEL_OPTIONS) as channel:

        async def work() -> None:
            while outcome.num_messages < num_messages and (attack := next(made, None)) is not None:
                await _strike(channel, attack, outcome)

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    return outcome


async def _strike(channel: grpc.aio.Channel, attack: Attack, outcome: Outcome) -> None:
    stopped = asyncio.Event()
    call = channel.stream_stream(f"{SERVICE}/{attack.method}")(_sending(attack, stopped, outcome), timeout=SECONDS)
    try:
        async with asyncio.timeout(HALF_OPEN_SECONDS if attack.half_open else None):
            async for _ in call:
                pass
        outcome.answers[(await call.code()).name] += 1
    except TimeoutError:
        outcome.answers["left half open"] += 1
    except grpc.aio.AioRpcError as error:
        outcome.answers[error.code().name] += 1
        if error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN):
            outcome.silent.append(f"seed {attack.seed}, {attack.method}: {error.code().name} {error.details()}")
    finally:
        stopped.set()
        call.cancel()


async def _sending(attack: Attack, stopped: asyncio.Event, outcome: Outcome) -> AsyncIterator[bytes]:
    for message in attack.messages:
        outcome.num_messages += 1  # those behind one that ends the call are never taken, nor counted
        yield message
    if attack.half_open:
        await stopped.wait()


async def fire(target: Target, seed: int, num_messages: int) -> Outcome:
    """Send `num_messages` made of `seed`."""
    return await hammer(target, attacks(target, seed), num_messages)


async def again(target: Target, seeds: Sequence[int]) -> Outcome:
    """Make the calls with these seeds once more, to look into one of them."""
    return await hammer(target, (make(target, seed) for seed in seeds), sys.maxsize)
