"""Machines of different versions of the protocol: what says a version is served or refused by name, never taken for another."""

import grpc
import pytest

from layermesh.coordinator.browsing import read_announcement
from layermesh.protos import mesh_pb2 as pb
from layermesh.shared.announcement import SERVICE_TYPE
from layermesh.shared.errors import MeshError
from layermesh.shared.grpc_options import CHANNEL_OPTIONS
from layermesh.shared.protocol import PROTOCOL_VERSION
from layermesh.worker import service
from tests.mesh.meshes import answer_alone, ask, open_mesh, stages

pytestmark = pytest.mark.usefixtures("one_thread")

OTHERS = {"none": 0, "the one before": PROTOCOL_VERSION - 1, "the next": PROTOCOL_VERSION + 1, "the last": 2**32 - 1}


@pytest.fixture(scope="module")
def served(tiny, tmp_path_factory):
    """A worker that runs a stage, with its key."""
    from tests.mesh.loopback import Loopback

    with Loopback(tmp_path_factory.mktemp("versions")) as loopback:
        (worker,) = loopback.add(1)
        with open_mesh(tiny("llama"), [worker]) as mesh:
            ask(mesh)
            (live,) = stages(worker)
            yield worker, live.key.to_proto(), live.model


def describe(stub, version, _key, _model):
    return stub.Describe(pb.DescribeRequest(version=version), timeout=10).version


def prepare(stub, version, key, model):
    start = pb.PrepareRequest(start=pb.PrepareStart(version=version, key=key, model=model))
    *_, last = stub.Prepare(iter([start]), timeout=20)
    return last.WhichOneof("kind")


def forward(stub, version, key, _model):
    hops = [pb.Hop(worker="w0", address="127.0.0.1:1", key=key)]
    route = pb.ForwardRequest(route=pb.Route(version=version, id=f"of version {version}", hops=hops))
    (answer,) = stub.Forward(iter([route]), timeout=20)
    if answer.HasField("failure"):
        raise MeshError(answer.failure.problem.message)
    return answer.WhichOneof("kind")


def fetch(stub, version, key, _model):
    request = pb.FetchRequest(version=version, fingerprint=key.fingerprint, part="nothing")
    return list(stub.Fetch(request, timeout=20))


CALLS = {"Describe": describe, "Prepare": prepare, "Forward": forward, "Fetch": fetch}


def calling(worker):
    return grpc.insecure_channel(worker.address, CHANNEL_OPTIONS)


def says_version(message):
    """Whether a message, or one that it is made of, says a version."""
    inner = (field.message_type for field in message.fields if field.message_type is not None and not field.is_repeated)
    return "version" in message.fields_by_name or any(map(says_version, inner))


def test_every_call_that_says_a_version_is_tried_here():
    methods = pb.DESCRIPTOR.services_by_name["WorkerService"].methods
    assert {method.name for method in methods if says_version(method.input_type)} == CALLS.keys()


@pytest.mark.parametrize("name", ["Prepare", "Forward", "Fetch"])
@pytest.mark.parametrize("version", OTHERS.values(), ids=OTHERS)
def test_another_version_is_refused_with_both_named(served, name, version):
    worker, key, model = served
    with calling(worker) as channel, pytest.raises((grpc.RpcError, MeshError)) as refused:
        CALLS[name](service_stub(channel), version, key, model)
    said = refused.value.details() if isinstance(refused.value, grpc.RpcError) else str(refused.value)
    assert f"speaks version {PROTOCOL_VERSION}" in said
    assert f"spoken to in {version}." in said
    assert "Install the same layermesh on both" in said
    if isinstance(refused.value, grpc.RpcError):
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def service_stub(channel):
    from layermesh.protos.mesh_pb2_grpc import WorkerServiceStub

    return WorkerServiceStub(channel)


def test_the_same_version_is_served(served):
    worker, key, model = served
    with calling(worker) as channel:
        stub = service_stub(channel)
        assert prepare(stub, PROTOCOL_VERSION, key, model) == "ready"
        assert forward(stub, PROTOCOL_VERSION, key, model) == "accepted"
        with pytest.raises(grpc.RpcError) as refused:
            fetch(stub, PROTOCOL_VERSION, key, model)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND  # it was understood: there is no such part


@pytest.mark.parametrize("version", [PROTOCOL_VERSION, *OTHERS.values()])
def test_anybody_may_ask_which_version_it_is(served, version):
    with calling(served[0]) as channel:
        assert describe(service_stub(channel), version, None, None) == PROTOCOL_VERSION


@pytest.mark.parametrize("version", OTHERS.values(), ids=OTHERS)
def test_a_worker_of_another_version_is_not_used(tiny, loopback, monkeypatch, version):
    (worker,) = loopback.add(1)
    with monkeypatch.context() as patch:
        patch.setattr(service, "PROTOCOL_VERSION", version)
        with open_mesh(tiny("llama"), [worker]) as mesh, pytest.raises(MeshError, match=rf"version {version} .*speaks 1\."):
            ask(mesh)
        assert stages(worker) == []
    with open_mesh(tiny("llama"), [worker]) as mesh:
        assert ask(mesh).token_ids == answer_alone(tiny("llama"))


@pytest.mark.parametrize("version", [b"1", b"2", b"65535"])
def test_an_announcement_of_any_version_is_read_so_that_it_can_be_named(version):
    texts = {b"id": b"w1", b"name": b"den-pc", b"version": version}
    assert read_announcement(f"w1.{SERVICE_TYPE}", texts, 50700, ["10.0.0.1"]).version == int(version)


@pytest.mark.parametrize("version", [b"", b"0", b"-1", b"1.0", b"65536", b"999999999999", b"one"])
def test_an_announcement_of_what_is_no_version_is_dropped(version):
    with pytest.raises(ValueError, match="version"):
        read_announcement(f"w1.{SERVICE_TYPE}", {b"id": b"w1", b"name": b"x", b"version": version}, 50700, ["10.0.0.1"])
