import asyncio

import pytest
import torch

from layermesh.protos import mesh_pb2 as pb
from layermesh.shared.errors import BusyError, MeshError
from layermesh.shared.frames import Frame, LayerOutput, SessionId
from layermesh.shared.wire import Envelope
from layermesh.worker import limits
from layermesh.worker.bounded_frames import BoundedFrames, Inflow
from layermesh.worker.limits import (
    MAX_FRAMES,
    MAX_ROUTES,
    MAX_SESSIONS,
    MAX_SESSIONS_PER_ROUTE,
    MAX_SOURCES,
    Load,
    check_address,
    check_routes,
    check_sessions,
    usable_sources,
)
from layermesh.worker.outbox import EASY_MESSAGES, MAX_MESSAGES, Outbox
from layermesh.worker.patience import without_silence


def envelope(num_bytes=0):
    hidden = LayerOutput((torch.zeros(num_bytes, dtype=torch.uint8),), bare=True)
    return Envelope("r", 0, 0, 2, Frame(SessionId("s"), 0, 0, 0, (1,), hidden))


def test_a_route_may_have_so_many_frames_here():
    load = Load()
    taken = [envelope() for _ in range(MAX_FRAMES)]
    for one in taken:
        load.take(one)
    with pytest.raises(MeshError, match="no more are taken"):
        load.take(envelope())
    load.give_back(taken)
    assert (load.num_frames, load.num_bytes) == (0, 0)
    load.take(envelope())


def test_a_route_may_have_so_many_bytes_here(monkeypatch):
    monkeypatch.setattr(limits, "MAX_HELD_BYTES", 1000)
    load = Load()
    load.take(envelope(900))
    with pytest.raises(MeshError, match="908 bytes"):
        load.take(envelope(200))
    load.give_back([envelope(900)])
    load.take(envelope(200))


def test_a_worker_takes_so_many_routes_and_knows_its_own():
    known = {f"r{number}": None for number in range(MAX_ROUTES)}
    check_routes(known, "r7")
    with pytest.raises(BusyError, match=f"{MAX_ROUTES} routes"):
        check_routes(known, "another")
    del known["r1"]
    check_routes(known, "another")


def sessions(route, number):
    return {SessionId(f"{route}-{index}"): route for index in range(number)}


def test_a_route_has_so_many_sessions_and_a_worker_so_many_in_all():
    full = sessions("a", MAX_SESSIONS_PER_ROUTE)
    check_sessions([full], SessionId("a-0"), "a")
    check_sessions([full], SessionId("new"), "b")
    with pytest.raises(BusyError, match="takes no more"):
        check_sessions([full], SessionId("new"), "a")
    crowd = [sessions(f"r{number}", MAX_SESSIONS // 8) for number in range(8)]
    check_sessions(crowd, SessionId("r0-0"), "r0")
    with pytest.raises(BusyError, match="takes no more"):
        check_sessions(crowd, SessionId("new"), "b")


@pytest.mark.parametrize("address", ["10.0.0.1:50700", "den-pc:1", "[fe80::1%eth0]:50700", "localhost"])
def test_addresses_of_workers(address):
    check_address(address)
    assert usable_sources([address]) == [address]


@pytest.mark.parametrize(
    "address", ["", "\0", "a b:1", "../x:1", "unix:/run/x", "x" * 400, "host:99999", "dns:///a:1"], ids=ascii
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(MeshError, match="is no address"):
        check_address(address)
    assert usable_sources([address, "den-pc:1"]) == ["den-pc:1"]


def test_so_many_sources_are_tried():
    assert len(usable_sources(f"10.0.0.1:{port}" for port in range(1, 1000))) == MAX_SOURCES


def message(number):
    return pb.Hop(worker=str(number))


def test_an_outbox_keeps_the_order_and_ends():
    async def main():
        outbox = Outbox()
        for number in range(3):
            outbox.put(message(number))
        outbox.end()
        outbox.put(message(9))
        return [one.worker async for one in outbox.messages()]

    assert asyncio.run(main()) == ["0", "1", "2"]


@pytest.mark.parametrize(("many", "max_bytes"), [(MAX_MESSAGES + 1, 1 << 30), (100, 200)], ids=["many", "large"])
def test_an_outbox_that_nobody_reads_is_given_up(many, max_bytes):
    async def main():
        outbox = Outbox(max_bytes)
        for number in range(many):
            outbox.put(message(number))
        assert outbox.is_overrun
        assert [one async for one in outbox.messages()] == []
        with pytest.raises(MeshError, match="too slowly"):
            await outbox.ease()

    asyncio.run(main())


def test_whoever_fills_an_outbox_waits_for_its_reader():
    async def main():
        outbox = Outbox()
        for number in range(EASY_MESSAGES + 2):
            outbox.put(message(number))
        waiting = asyncio.create_task(outbox.ease())
        taken = outbox.messages()
        await anext(taken)
        assert not waiting.done()
        await anext(taken)
        await asyncio.wait_for(waiting, 5)

    asyncio.run(main())


def test_what_comes_in_at_once_is_bounded_over_all_streams():
    inflow = Inflow(100)
    first, second = BoundedFrames(inflow), BoundedFrames(inflow)
    spec = pb.TensorSpec(dtype=pb.D_TYPE_BOOL, shape=[90])
    header = pb.FrameHeader(route="r", session="s", token_ids=[1], sweep_size=1, tensors=[spec], bare=True)
    assert first.add(pb.FramePart(header=header, data=bytes(60))) is None
    with pytest.raises(MeshError, match="come in at once"):
        second.add(pb.FramePart(header=header, data=bytes(60)))
    second.drop()
    assert inflow.num_bytes == 60
    assert first.add(pb.FramePart(data=bytes(30), last=True)) is not None
    assert inflow.num_bytes == 0
    assert second.add(pb.FramePart(header=header, data=bytes(90), last=True)) is not None


def test_silence_in_the_middle_of_something_is_no_reason_to_wait_for_ever():
    async def stream():
        yield 1
        await asyncio.Event().wait()

    async def main():
        items = without_silence(stream(), "den-pc", 0.01)
        assert await anext(items) == 1
        with pytest.raises(MeshError, match="den-pc sent nothing for 0 s"):
            await anext(items)

    asyncio.run(main())


def test_what_ends_in_time_is_passed_on():
    async def stream():
        for number in range(3):
            yield number

    async def main():
        return [item async for item in without_silence(stream(), "den-pc")]

    assert asyncio.run(main()) == [0, 1, 2]
