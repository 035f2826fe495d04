"""A real worker under fire: `LAYERMESH_HOSTILE_MESSAGES` says how many messages, `LAYERMESH_SEED` makes the same ones again."""

import asyncio
import os
import random
import socket
import time
from contextlib import ExitStack
from itertools import islice

import grpc
import grpc.aio
import pytest

from layermesh.protos import mesh_pb2 as pb
from layermesh.protos.mesh_pb2_grpc import WorkerServiceStub
from layermesh.shared.grpc_options import CHANNEL_OPTIONS
from layermesh.shared.stage_key import StageKey
from layermesh.worker.limits import MAX_ROUTES
from tests.mesh import hammer
from tests.mesh.meshes import answer_alone, ask, machines, open_mesh
from tests.mesh.waiting import wait_until
from tests.mesh.worker_process import WorkerProcess

NUM_MESSAGES = int(os.environ.get("LAYERMESH_HOSTILE_MESSAGES", "10000"))
SPARE_FDS = 1  # the heartbeat of the coordinator here has a connection of its own while its route is open
POOL_THREADS = 6  # asyncio starts those of its pool as it needs them
SEED = int(os.environ.get("LAYERMESH_SEED", "5"))
NUM_FIRST = max(NUM_MESSAGES // 20, 2000)
NUM_PEERS = 200
MOST_GROWTH_BYTES = 20_000_000

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    with WorkerProcess(tmp_path_factory.mktemp("under-fire")) as process:
        yield process


@pytest.fixture(scope="module")
def mesh(worker, tiny):
    """A coordinator that uses the worker before, between and after what others do to it."""
    with open_mesh(tiny("llama"), [worker]) as mesh:
        ask(mesh)
        yield mesh


@pytest.fixture(scope="module")
def loop():
    """One event loop for all of them: gRPC leaves threads behind that may still speak to one that has ended."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def target(worker, mesh, loop):
    """What is fired at; that has begun, since threads and caches of libraries then have the size they keep."""
    with grpc.insecure_channel(worker.address, CHANNEL_OPTIONS) as channel:
        (running,) = WorkerServiceStub(channel).Describe(pb.DescribeRequest(version=1), timeout=10).running
    target = hammer.Target(worker.address, running.key, mesh.local.manifest.to_bytes())
    loop.run(hammer.fire(target, SEED + 1, NUM_FIRST))
    return target


@pytest.fixture(autouse=True)
def serves_on(worker, mesh, target, tiny, loop):
    """Whatever was done to it, it holds no more than before and answers as ever."""
    before = worker.taken()
    yield
    assert worker.is_up, worker.said

    def holds_no_more():
        loop.run(asyncio.sleep(0))  # on this side, closed connections go while the loop runs
        now = worker.taken()
        return now.num_fds <= before.num_fds + SPARE_FDS and now.num_threads <= before.num_threads + POOL_THREADS

    wait_until(holds_no_more, 30)
    answer = ask(mesh)
    assert machines(answer) == ["w0", "local"]
    assert answer.token_ids == answer_alone(tiny("llama"))
    assert "Traceback" not in worker.said
    assert "rror" not in worker.said


def test_a_worker_takes_ten_thousand_hostile_messages_and_serves_on(worker, target, loop):
    print(f"seed {SEED}: {NUM_MESSAGES} messages. Again: LAYERMESH_SEED={SEED} LAYERMESH_HOSTILE_MESSAGES={NUM_MESSAGES}")
    before, began = worker.taken(), time.monotonic()
    outcome = loop.run(hammer.fire(target, SEED, NUM_MESSAGES))
    after = worker.taken()
    grown = after.rss_bytes - before.rss_bytes
    print(f"{outcome.num_messages} messages in {time.monotonic() - began:.1f} s; {dict(outcome.answers)}; RSS {grown:+,} bytes")
    print(before, after)
    assert outcome.num_messages >= NUM_MESSAGES
    assert outcome.silent == []
    assert {"OK", "INVALID_ARGUMENT", "UNIMPLEMENTED", "NOT_FOUND", "FAILED_PRECONDITION"} <= outcome.answers.keys()
    assert grown < MOST_GROWTH_BYTES


def test_messages_can_be_made_again(target):
    first, second, other = (list(islice(hammer.attacks(target, seed), 50)) for seed in (SEED, SEED, SEED + 1))
    assert first == second
    assert first[7] == hammer.make(target, first[7].seed)
    assert [attack.messages for attack in first] != [attack.messages for attack in other]


def test_a_message_that_is_too_large_is_refused(worker, target):
    with grpc.insecure_channel(worker.address, CHANNEL_OPTIONS) as channel, pytest.raises(grpc.RpcError) as refused:
        WorkerServiceStub(channel).Echo(pb.EchoRequest(payload=bytes(5 << 20)), timeout=10)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("method", ["Describe", "Echo", "Reserve", "Release", "Fetch", "Prepare", "Forward"])
def test_what_cannot_be_read_is_an_invalid_argument(worker, method):
    with grpc.insecure_channel(worker.address, CHANNEL_OPTIONS) as channel, pytest.raises(grpc.RpcError) as refused:
        list(channel.stream_stream(f"{hammer.SERVICE}/{method}")(iter([b"\xff\xff\xff"]), timeout=10))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "cannot be read" in refused.value.details()


def garbage(rng):
    """What peers say that do not speak gRPC, or not for long."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    return [
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(200),
        rng.randbytes(4000),
        preface + rng.randbytes(500),
        preface + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01" * 20,
        preface[:10],
    ]


def test_two_hundred_peers_that_speak_no_grpc(worker, mesh, tiny):
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    host, port = worker.address.split(":")
    before = worker.taken()
    with ExitStack() as held:
        peers = [held.enter_context(socket.create_connection((host, int(port)), 5)) for _ in range(NUM_PEERS)]
        for number, peer in enumerate(peers):
            kinds = garbage(rng)
            peer.sendall(kinds[number % len(kinds)])
        assert ask(mesh).token_ids == answer_alone(tiny("llama"))
        # Those that say nothing that makes sense are cut off, though nobody closed anything here.
        wait_until(lambda: worker.taken().num_fds <= before.num_fds + NUM_PEERS // 7, 30)
    assert worker.taken().rss_bytes - before.rss_bytes < MOST_GROWTH_BYTES


def test_a_reader_that_reads_nothing_is_not_kept_more_and_more_for(worker, target, loop):
    """Each of these frames is answered with a failure, which nobody fetches."""
    route = pb.Route(version=1, id="slow", hops=[pb.Hop(worker="w0", address="127.0.0.1:1", key=target.key)])
    header = pb.FrameHeader(route="slow", session="s" * 199, token_ids=[1], sweep_size=1)
    part = pb.ForwardRequest(frame=pb.FramePart(header=header, last=True)).SerializeToString()
    sent = 0

    async def main():
        nonlocal sent
        async with grpc.aio.insecure_channel(worker.address, CHANNEL_OPTIONS) as channel:
            call = channel.stream_stream(f"{hammer.SERVICE}/Forward")()
            await call.write(pb.ForwardRequest(route=route).SerializeToString())
            try:
                async with asyncio.timeout(20):
                    while sent < 200_000:
                        await asyncio.wait_for(call.write(part), 2)
                        sent += 1
            except TimeoutError:
                pass
            call.cancel()

    before = worker.taken()
    loop.run(main())
    print(f"{sent} frames were taken")
    assert sent < 200_000
    assert worker.taken().rss_bytes - before.rss_bytes < MOST_GROWTH_BYTES


def test_no_more_routes_are_taken_than_make_sense(target, loop):
    async def main():
        streams, refused = [], ""
        async with grpc.aio.insecure_channel(target.address, CHANNEL_OPTIONS) as channel:
            forward = WorkerServiceStub(channel).Forward
            call = forward()
            for number in range(MAX_ROUTES + 8):
                hops = [pb.Hop(worker="w0", address="127.0.0.1:1", key=target.key)]
                await call.write(pb.ForwardRequest(route=pb.Route(version=1, id=f"many-{number}", hops=hops)))
                answer = await call.read()
                if answer.HasField("failure"):
                    refused = answer.failure.problem.message
                    break
                streams.append(number)
            call.cancel()
        return len(streams), refused

    num_routes, refused = loop.run(main())
    assert MAX_ROUTES - 8 <= num_routes <= MAX_ROUTES
    assert "takes no more until one ends" in refused


def test_the_stage_that_was_fired_at_is_the_one_that_serves(target):
    assert StageKey.parse(target.key).span.start == 0
