"""What goes wrong between machines, and what those who did not cause it notice: a clear message, or nothing."""

import http.server
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import grpc
import pytest

from layermesh.protos import mesh_pb2 as pb
from layermesh.protos.mesh_pb2_grpc import WorkerServiceStub
from layermesh.shared.errors import MeshError, UnsupportedModelError, UsageError
from layermesh.shared.grpc_options import CHANNEL_OPTIONS
from layermesh.worker import preparing, service
from tests.mesh.loopback import LoopbackWorker
from tests.mesh.meshes import answer_alone, ask, machines, num_sessions, open_mesh, stages
from tests.mesh.waiting import wait_until

pytestmark = pytest.mark.usefixtures("one_thread", "no_models_there")

HUGE = 2**32 - 1


class At:
    """Somebody at an address, who need not be a worker."""

    def __init__(self, port):
        self.address = f"127.0.0.1:{port}"


@contextmanager
def nobody():
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        yield probe.getsockname()[1]


@contextmanager
def silence():
    with closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


@contextmanager
def web_server():
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield server.server_port
        server.shutdown()
        serving.join()


@pytest.mark.parametrize("there", [nobody, silence, web_server])
def test_a_wrong_address_is_named(tiny, there, monkeypatch):
    monkeypatch.setattr("layermesh.coordinator.worker_client.DESCRIBE_SECONDS", 1.0)
    with there() as port, open_mesh(tiny("llama"), [At(port)]) as mesh:
        with pytest.raises(MeshError, match=rf"127\.0\.0\.1:{port}.*(Is it running|asleep|address)") as failed:
            ask(mesh)
        assert failed.value.exit_code == 4


def test_another_version_is_named_with_both(tiny, loopback, monkeypatch):
    (worker,) = loopback.add(1)
    monkeypatch.setattr(service, "PROTOCOL_VERSION", 7)
    with open_mesh(tiny("llama"), [worker]) as mesh, pytest.raises(MeshError, match=r"w0 .*version 7 .*speaks 1\. Install"):
        ask(mesh)


def test_a_coordinator_of_another_version_is_refused(loopback):
    (worker,) = loopback.add(1)
    with calling(worker) as stub, pytest.raises(grpc.RpcError) as failed:
        list(stub.Prepare(iter([pb.PrepareRequest(start=pb.PrepareStart(version=9, key=key()))])))
    assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "spoken to in 9. Install the same" in failed.value.details()


def test_a_port_in_use_is_a_usage_error(loopback, tmp_path):
    (worker,) = loopback.add(1)
    other = LoopbackWorker(loopback._loop, tmp_path / "other", 9)
    other.port = worker.port
    with pytest.raises(UsageError, match=rf"cannot listen at 127.0.0.1:{worker.port}.*--port") as failed:
        other.start()
    assert failed.value.exit_code == 2


def test_a_worker_whose_budget_holds_not_one_block_is_named_and_done_without(tiny, loopback):
    workers, said = loopback.add(1) + loopback.add(1, budget_bytes=100_000), []
    with open_mesh(tiny("llama"), workers, tell=said.append) as mesh:
        answer = ask(mesh)
        assert answer.token_ids == answer_alone(tiny("llama"))
        assert machines(answer) == ["w0", "local"]
        assert any(re.search(r"w1 needs at least .* and may use 100", sentence) for sentence in said), said


def test_two_workers_of_one_name_are_told_apart(tiny, loopback):
    workers = loopback.add(2)
    for worker in workers:
        worker.stop()
        worker.name = "den-pc"
        worker.start()
    with open_mesh(tiny("llama"), workers) as mesh:
        for _ in range(2):
            answer = ask(mesh)
            assert machines(answer) == ["den-pc (000000)", "den-pc (100000)", "local"]
            assert answer.token_ids == answer_alone(tiny("llama"))


def test_a_worker_that_is_called_as_the_own_machine_is_gets_another_name(tiny, loopback):
    (worker,) = loopback.add(1)
    worker.stop()
    worker.name = "local"
    worker.start()
    with open_mesh(tiny("llama"), [worker]) as mesh:
        assert machines(ask(mesh)) == ["local (000000)", "local"]


def test_a_model_that_the_workers_transformers_does_not_know_is_named(tiny, loopback, monkeypatch):
    def unknown(*_, **__):
        raise UnsupportedModelError("transformers does not know the architecture. A newer transformers may.")

    (worker,) = loopback.add(1)
    monkeypatch.setattr(preparing, "define", unknown)
    with open_mesh(tiny("llama"), [worker]) as mesh:
        with pytest.raises(UnsupportedModelError, match=r"worker w0: transformers does not know.*newer") as failed:
            ask(mesh)
        assert failed.value.exit_code == 3


# What follows is what a broken or hostile machine may send.


@contextmanager
def calling(worker) -> Iterator[WorkerServiceStub]:
    with grpc.insecure_channel(worker.address, CHANNEL_OPTIONS) as channel:
        yield WorkerServiceStub(channel)


def key(**changes):
    return pb.SpanKey(**{"fingerprint": "0" * 64, "start": 0, "end": 2, "dtype": "float32", **changes})


ODD_KEYS = {
    "no fingerprint": {"fingerprint": ""},
    "a path": {"fingerprint": "../" * 21 + "x"},
    "an empty span": {"end": 0},
    "a span turned round": {"start": 5},
    "huge": {"start": 1, "end": HUGE},
    "dtype": {"dtype": "load"},
}


@pytest.fixture(scope="module")
def busy(tiny, tmp_path_factory):
    """A worker with a mesh of which it is a part, and which must go on whatever others send."""
    from tests.mesh.loopback import Loopback

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing, "find_own", lambda *_: None)
        with Loopback(tmp_path_factory.mktemp("busy")) as loopback:
            (worker,) = loopback.add(1)
            with open_mesh(tiny("llama"), [worker]) as mesh:
                ask(mesh)
                yield worker, mesh


@pytest.fixture(autouse=True)
def goes_on(request, tiny):
    yield
    if "busy" in request.fixturenames:
        worker, mesh = request.getfixturevalue("busy")
        wait_until(lambda: num_sessions(worker) == 0)
        assert machines(ask(mesh)) == ["w0", "local"]


@pytest.mark.parametrize("changes", ODD_KEYS.values(), ids=ODD_KEYS)
def test_a_stage_that_makes_no_sense_is_refused_everywhere(busy, changes):
    worker, _ = busy
    odd = key(**changes)
    with calling(worker) as stub:
        start = pb.PrepareStart(version=1, key=odd, model="/etc/passwd")
        *_, last = stub.Prepare(iter([pb.PrepareRequest(start=start)]), timeout=10)
        assert last.failed.kind == "MeshError"
        assert stub.Reserve(pb.ReserveRequest(key=odd, session="s", num_tokens=5, num_new=5), timeout=10).problem.message
        stub.Release(pb.ReleaseRequest(key=odd, session="s"), timeout=10)
        (failure,) = forward(stub, route(odd))
        assert failure.failure.problem.kind == "MeshError"


def running(worker):
    (live,) = stages(worker)
    return live.key.to_proto()


def test_spans_that_the_model_has_not_are_refused(busy):
    worker, _ = busy
    for changes in ({"start": 1, "end": 50_000}, {"end": 1, "has_head": True}):
        odd = running(worker)
        odd.MergeFrom(pb.SpanKey(**changes))
        with calling(worker) as stub:
            start = pb.PrepareStart(version=1, key=odd, model="model")
            *_, last = stub.Prepare(iter([pb.PrepareRequest(start=start)]), timeout=10)
        assert "layers and was to run" in last.failed.message


@pytest.mark.parametrize(
    "requests",
    [
        [],
        [pb.PrepareRequest(chunk=pb.Chunk(part="rest"))],
        [pb.PrepareRequest(start=pb.PrepareStart(version=1, key=key())), pb.PrepareRequest(chunk=pb.Chunk(part="rest"))],
        [
            pb.PrepareRequest(start=pb.PrepareStart(version=1, key=key())),
            pb.PrepareRequest(chunk=pb.Chunk(part="manifest", data=b"\xff" * 100, sha256=b"1")),
        ],
        [pb.PrepareRequest(start=pb.PrepareStart(version=1, key=key(), sources=["nobody:1", "\0", "x" * 300]))],
    ],
    ids=["nothing", "no start", "another part", "no manifest", "gone at once"],
)
def test_a_preparation_that_makes_no_sense_fails(busy, requests):
    with calling(busy[0]) as stub:
        if not requests or not requests[0].HasField("start"):
            with pytest.raises(grpc.RpcError) as failed:
                list(stub.Prepare(iter(requests), timeout=10))
            assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        else:
            *_, last = stub.Prepare(iter(requests), timeout=10)
            assert last.WhichOneof("kind") == "failed"


@pytest.mark.parametrize(
    "changes",
    [
        {"num_tokens": 0},
        {"num_tokens": HUGE, "num_new": HUGE},
        {"num_tokens": 2_000_000, "num_new": 2_000_000},
        {"num_new": 9},
        {"session": ""},
        {"session": "s" * 1000},
        {"route": "nobody's"},
    ],
    ids=str,
)
def test_room_that_makes_no_sense_is_refused(busy, changes):
    worker, mesh = busy
    asked = {"session": "s", "num_tokens": 8, "num_new": 8, "route": mesh.local.mesh_line.route.id, **changes}
    with calling(worker) as stub:
        assert stub.Reserve(pb.ReserveRequest(key=running(worker), **asked), timeout=30).problem.message
    assert num_sessions(worker) == 0


def test_parts_that_are_not_there_are_not_handed_out(busy):
    worker, _ = busy
    there = running(worker).fingerprint
    for fingerprint, part in (("..", "rest"), ("0" * 64, "rest"), (there, "../x"), (there, "layer 77")):
        with calling(worker) as stub, pytest.raises(grpc.RpcError) as failed:
            list(stub.Fetch(pb.FetchRequest(version=1, fingerprint=fingerprint, part=part), timeout=10))
        assert failed.value.code() is grpc.StatusCode.NOT_FOUND
    with calling(worker) as stub:
        request = pb.FetchRequest(version=1, fingerprint=there, part="rest", offset=2**63)
        assert [len(one.chunk.data) for one in stub.Fetch(request, timeout=10)] == [0]


def route(span, **changes):
    hops = [pb.Hop(worker="w0", address="127.0.0.1:1", key=span)]
    return pb.ForwardRequest(route=pb.Route(**{"version": 1, "id": "odd", "hops": hops, **changes}))


def frame(**changes):
    header = {"route": "odd", "session": "s", "token_ids": [1], "sweep_size": 1, **changes}
    data = header.pop("data", b"")
    return pb.ForwardRequest(frame=pb.FramePart(header=pb.FrameHeader(**header), data=data, last=True))


def forward(stub, *requests, until="failure"):
    """What comes back up to the first failure."""
    answered = threading.Event()

    def sending():
        yield from requests
        answered.wait(10)

    responses = []
    for response in stub.Forward(sending(), timeout=20):
        responses.append(response)
        if response.WhichOneof("kind") == until:
            break
    answered.set()
    return responses


def shape(*sizes, dtype=pb.D_TYPE_FLOAT32):
    return pb.TensorSpec(dtype=dtype, shape=sizes)


ODD_FRAMES = {
    "no tokens": {"token_ids": []},
    "no session": {"session": ""},
    "a long name": {"session": "s" * 1000},
    "no sweep": {"sweep_size": 0},
    "huge tensor": {"tensors": [shape(HUGE, HUGE)], "bare": True},
    "empty and huge": {"tensors": [shape(0, HUGE, HUGE, HUGE)], "bare": True},
    "many dimensions": {"tensors": [shape(*[1] * 5000)], "bare": True},
    "unknown dtype": {"tensors": [shape(1, dtype=77)], "bare": True},
    "too little data": {"tensors": [shape(1, 1, 64)], "bare": True, "data": b"1234"},
    "too much data": {"data": b"1234"},
    "many tensors": {"tensors": [shape(1)] * 100},
}


@pytest.mark.parametrize("changes", ODD_FRAMES.values(), ids=ODD_FRAMES)
def test_frames_that_make_no_sense_end_their_stream(busy, changes):
    worker, _ = busy
    with calling(worker) as stub:
        *_, last = forward(stub, route(running(worker)), frame(**changes))
    assert last.failure.worker == "w0"
    assert last.failure.problem.kind == "MeshError"


@pytest.mark.parametrize(
    "changes",
    [{"id": ""}, {"id": "r" * 1000}, {"hops": []}, {"hop": 5}],
    ids=["no id", "a long id", "no hops", "a hop that is none"],
)
def test_routes_that_make_no_sense_are_refused(busy, changes):
    worker, _ = busy
    with calling(worker) as stub:
        *_, last = forward(stub, route(running(worker), **changes))
    assert last.failure.problem.kind == "MeshError"


def test_frames_before_a_route_and_of_others_routes_are_dropped(busy):
    worker, mesh = busy
    with calling(worker) as stub:
        taken = [frame(), frame(route=mesh.local.mesh_line.route.id, epoch=7)]
        *_, last = forward(stub, *taken, frame(sweep_size=0))
    assert last.failure.problem.kind == "MeshError"


def test_a_session_that_nobody_made_room_for_gets_nothing(busy):
    worker, _ = busy
    with calling(worker) as stub:
        accepted, last = forward(stub, route(running(worker)), frame())
    assert accepted.HasField("accepted")
    assert last.failure.session == "s"
    assert "is not known" in last.failure.problem.message


ODD_SESSIONS = {
    "a token that there is not": [{"token_ids": [10_000_000]}],
    "another position": [{"position": 5}],
    "a position too large": [{"position": 2**63}],
    "hidden states to the first stage": [{"tensors": [shape(1, 1, 3)], "bare": True, "data": bytes(12)}],
    "two of a session in a sweep": [{"sweep_size": 2}, {"sweep_size": 2}],
    "a frame twice": [{}, {}],
}


@pytest.mark.parametrize("frames", ODD_SESSIONS.values(), ids=ODD_SESSIONS)
def test_a_session_that_goes_wrong_fails_alone(busy, frames):
    worker, _ = busy
    reserved = threading.Event()

    def sending(stub):
        yield route(running(worker))
        reserved.wait(10)
        for changes in frames:
            yield frame(**changes)
        ended.wait(10)

    ended = threading.Event()
    with calling(worker) as stub:
        for response in stub.Forward(sending(stub), timeout=20):
            kind = response.WhichOneof("kind")
            if kind == "accepted":
                asked = pb.ReserveRequest(key=running(worker), session="s", num_tokens=8, num_new=8, route="odd")
                assert not stub.Reserve(asked, timeout=10).HasField("problem")
                reserved.set()
            elif kind == "failure":
                assert response.failure.session == "s"
                break
        ended.set()


def test_hidden_states_of_another_width_fail_clearly(tiny, loopback):
    workers = loopback.add(2)
    with open_mesh(tiny("llama"), workers) as mesh:
        ask(mesh)
        second = running(workers[1])
        reserved, ended = threading.Event(), threading.Event()

        def sending():
            yield route(second)
            reserved.wait(10)
            yield frame(tensors=[shape(1, 1, 3)], bare=True, data=bytes(12))
            ended.wait(10)

        with calling(workers[1]) as stub:
            for response in stub.Forward(sending(), timeout=20):
                if response.HasField("accepted"):
                    stub.Reserve(pb.ReserveRequest(key=second, session="s", num_tokens=8, num_new=8, route="odd"), timeout=10)
                    reserved.set()
                elif response.HasField("failure"):
                    assert "failed at token 0" in response.failure.problem.message
                    break
            ended.set()
        assert ask(mesh).token_ids == answer_alone(tiny("llama"))
