"""Workers and coordinators that know each other by certificates, over real sockets: who is let in, who is not, and why."""

import asyncio
import json
import re
import socket
import ssl
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from layermesh.coordinator.registry import Registry
from layermesh.protos import mesh_pb2 as pb
from layermesh.protos.mesh_pb2_grpc import MembershipServiceStub, WorkerServiceStub
from layermesh.shared.channels import Channels
from layermesh.shared.errors import AuthenticationError, MeshError
from layermesh.shared.grpc_options import CHANNEL_OPTIONS
from layermesh.shared.security.authority import Authority, utc_now
from layermesh.shared.security.mesh_home import MeshHome
from layermesh.shared.security.nodes import host_name, new_node_id
from layermesh.shared.security.removals import SignedRemovals
from tests.mesh.meshes import answer_alone, ask, machines, num_sessions, open_mesh, stages
from tests.mesh.pairing import certified, holding, pair_with
from tests.mesh.waiting import wait_until

pytestmark = pytest.mark.usefixtures("one_thread", "no_models_there")

REFUSED_SECONDS = 1.0
CUT_SECONDS = 2.0
GARBAGE = Path(__file__).with_name("garbage_peers.py")
BOMB_BYTES = 3 << 20  # below the limit, so that it is not the limit that refuses it


@pytest.fixture
def mesh_home(tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERMESH_HOME", str(tmp_path / "home"))
    home = MeshHome()
    home.begin()
    return home


@pytest.fixture
def workers(loopback, mesh_home):
    return loopback.add(3, pair=pair_with(mesh_home))


def test_an_answer_through_paired_workers_is_that_of_one_machine(tiny, workers, mesh_home):
    with open_mesh(tiny("llama"), workers) as mesh:
        answer = ask(mesh)
        assert machines(answer) == ["w0", "w1", "w2", "local"]
        assert answer.token_ids == answer_alone(tiny("llama"))
    assert [node.name for node in mesh_home.nodes() if node.seen is not None] == ["w0", "w1", "w2"]
    assert {node.address for node in mesh_home.nodes()} == {worker.address for worker in workers}


def test_parts_go_from_one_paired_worker_to_another(tiny, workers):
    """A worker asks another for what the coordinator would have to send again."""
    with open_mesh(tiny("llama"), workers[:1]) as mesh:
        ask(mesh)
    with open_mesh(tiny("llama"), workers[:2]) as mesh:
        sources = [peer.address_for([]) for peer in mesh.workers._registry.find()]
        assert all(address.startswith(f"{worker.id}@127.0.0.1:") for address, worker in zip(sources, workers, strict=False))
        assert ask(mesh).token_ids == answer_alone(tiny("llama"))


def refusal(tiny, workers):
    """Why a mesh of `workers` cannot be used, and that it took no longer than it may and gave nobody anything."""
    addresses = [worker.address for worker in workers]
    with Registry(addresses, discover=False) as registry:
        began = time.monotonic()
        with pytest.raises(AuthenticationError) as refused:
            registry.find()
        seconds = time.monotonic() - began
    with pytest.raises(AuthenticationError), open_mesh(tiny("llama"), workers) as mesh:
        ask(mesh)
    assert stages(*workers) == []
    assert not any(worker.store.models() for worker in workers)
    assert seconds < REFUSED_SECONDS
    assert refused.value.exit_code == 5
    return str(refused.value)


def shown_by(worker, own, case):
    """The credentials of a worker that should be refused."""
    now = utc_now()
    return {
        "rogue": lambda: certified(Authority.make(now), worker.id, "worker", now),
        "expired": lambda: certified(own, worker.id, "worker", now - timedelta(days=400)),
        "not yet": lambda: certified(own, worker.id, "worker", now + timedelta(days=3)),
        "coordinator": lambda: certified(own, worker.id, "coordinator", now),
        "somebody else": lambda: certified(own, "f" * 32, "worker", now),
    }[case]()


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("rogue", r"is paired with another mesh"),
        ("expired", r"has expired: it ended on 20\d\d-\d\d-\d\d, 3\d days ago by this machine's clock"),
        ("not yet", r"is not yet valid: it was made 3 days from now"),
        ("coordinator", r"shows the certificate of a coordinator, not of a worker"),
        ("somebody else", r"says it is another than its certificate does"),
    ],
)
def test_a_worker_that_is_not_of_the_mesh_is_refused_by_name(tiny, loopback, mesh_home, case, reason):
    own = mesh_home.authority()
    workers = loopback.add(1, pair=lambda worker: holding(worker, shown_by(worker, own, case)))
    said = refusal(tiny, workers)
    assert re.search(reason, said), said


def test_a_worker_that_was_removed_is_refused_by_name(tiny, loopback, mesh_home):
    workers = loopback.add(1, pair=pair_with(mesh_home))
    mesh_home.remove("w0")
    assert "was removed from this mesh" in refusal(tiny, workers)


def test_a_machine_without_a_mesh_is_told_so(tiny, workers, tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERMESH_HOME", str(tmp_path / "another"))
    assert "belongs to a mesh, and this machine to none" in refusal(tiny, workers)


def test_a_coordinator_whose_own_certificate_does_not_hold_learns_that(tiny, workers, mesh_home, monkeypatch):
    own = mesh_home.credentials()
    old = certified(mesh_home.authority(), own.member.node, "coordinator", utc_now() - timedelta(days=400))
    mesh_home._own.keep(old)
    monkeypatch.setattr("layermesh.shared.security.mesh_home.is_due", lambda *_: False)
    assert "refused our certificate: it expired on" in refusal(tiny, workers)


@contextmanager
def calling(worker, credentials, node=None):
    """A plain gRPC client with these credentials, or none: what somebody else's program would be."""
    if credentials is None:
        channel = grpc.insecure_channel(worker.address, CHANNEL_OPTIONS)
    else:
        secrets = grpc.ssl_channel_credentials(credentials.authority_pem, credentials.key_pem, credentials.certificate_pem)
        options = [*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", host_name(node or worker.id))]
        channel = grpc.secure_channel(worker.address, secrets, options)
    with channel:
        yield channel


def mistrusted(mesh_home, case):
    """The credentials of a client that should be refused; they trust the right authority."""
    now, own = utc_now(), mesh_home.authority()
    if case == "none":
        return None
    if case == "rogue":
        rogue = certified(Authority.make(now), "e" * 32, "coordinator", now)
        return Trusting(rogue.key_pem, rogue.certificate_pem, own.certificate)
    made = {"expired": now - timedelta(days=400), "not yet": now + timedelta(days=3)}[case]
    return certified(own, "e" * 32, "coordinator", made)


class Trusting:
    def __init__(self, key_pem, certificate_pem, authority):
        from cryptography.hazmat.primitives.serialization import Encoding

        self.key_pem, self.certificate_pem = key_pem, certificate_pem
        self.authority_pem = authority.public_bytes(Encoding.PEM)


@pytest.mark.parametrize("case", ["none", "rogue", "expired", "not yet"])
def test_a_client_that_is_not_of_the_mesh_gets_no_word(workers, mesh_home, case):
    began = time.monotonic()
    with calling(workers[0], mistrusted(mesh_home, case)) as channel, pytest.raises(grpc.RpcError) as refused:
        WorkerServiceStub(channel).Describe(pb.DescribeRequest(version=1), timeout=5)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert time.monotonic() - began < REFUSED_SECONDS


def test_tls_does_not_reach_a_worker_that_is_not_paired(loopback, mesh_home):
    (worker,) = loopback.add(1)
    with calling(worker, mesh_home.credentials()) as channel, pytest.raises(grpc.RpcError) as refused:
        WorkerServiceStub(channel).Describe(pb.DescribeRequest(version=1), timeout=5)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_connection_goes_to_the_node_that_was_meant_and_to_no_other(workers, mesh_home):
    with calling(workers[0], mesh_home.credentials(), workers[1].id) as channel, pytest.raises(grpc.RpcError) as refused:
        WorkerServiceStub(channel).Describe(pb.DescribeRequest(version=1), timeout=5)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


REQUESTS = {
    "Prepare": lambda stub: next(stub.Prepare(iter([pb.PrepareRequest(start=pb.PrepareStart(version=1))]), timeout=5)),
    "Reserve": lambda stub: stub.Reserve(pb.ReserveRequest(), timeout=5),
    "Release": lambda stub: stub.Release(pb.ReleaseRequest(), timeout=5),
}
MEMBERSHIP = {
    "Remove": lambda stub: stub.Remove(pb.RemoveRequest(), timeout=5),
    "BeginRenewal": lambda stub: stub.BeginRenewal(pb.BeginRenewalRequest(), timeout=5),
    "FinishRenewal": lambda stub: stub.FinishRenewal(pb.FinishRenewalRequest(), timeout=5),
}


@pytest.mark.parametrize("method", [*REQUESTS, *MEMBERSHIP])
def test_a_worker_may_not_do_what_is_the_coordinators(workers, method):
    with calling(workers[0], workers[1].membership.credentials()) as channel:
        stub = WorkerServiceStub(channel) if method in REQUESTS else MembershipServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            (REQUESTS | MEMBERSHIP)[method](stub)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert f"a worker may not call {method}" in refused.value.details()


def test_a_worker_may_ask_another_who_it_is_and_opens_no_route(workers):
    with calling(workers[0], workers[1].membership.credentials()) as channel:
        stub = WorkerServiceStub(channel)
        assert stub.Describe(pb.DescribeRequest(version=1), timeout=5).worker_id == workers[0].id
        route = pb.ForwardRequest(route=pb.Route(version=1, id="x", hops=[pb.Hop(worker="w0")]))
        (answer,) = stub.Forward(iter([route]), timeout=5)
        assert answer.failure.problem.kind == "AuthenticationError"
        assert "may not open a route" in answer.failure.problem.message


def test_who_was_removed_is_refused_everything_by_those_who_know(workers, mesh_home):
    mesh_home.remove("w1")
    with Registry([workers[0].address], discover=False) as registry:
        registry.find()
    with calling(workers[0], workers[1].membership.credentials()) as channel, pytest.raises(grpc.RpcError) as refused:
        WorkerServiceStub(channel).Describe(pb.DescribeRequest(version=1), timeout=5)
    assert (refused.value.code(), refused.value.details()) == (
        grpc.StatusCode.PERMISSION_DENIED,
        "this node was removed from the mesh",
    )
    with pytest.raises(AuthenticationError, match="no node"):
        Channels(workers[0].membership.credentials, None, workers[0].membership.removed).open(f"{workers[1].id}@127.0.0.1:1")


def test_a_list_that_the_authority_did_not_sign_changes_nothing(workers, mesh_home):
    rogue = Authority.make(utc_now())
    mesh_home.remove("w1")
    _, signed = mesh_home.signed_removals()
    forged = SignedRemovals(signed.body, rogue.sign(signed.body))
    with calling(workers[0], mesh_home.credentials()) as channel:
        stub = MembershipServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.Remove(pb.RemoveRequest(body=forged.body, signature=forged.signature), timeout=5)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert workers[0].membership.removed() == frozenset()
        assert stub.Remove(pb.RemoveRequest(body=signed.body, signature=signed.signature), timeout=5).number == 1
        assert workers[0].membership.removed() == {workers[1].id}


def test_removing_a_node_cuts_it_off_in_a_running_answer_which_goes_on(tiny, workers, mesh_home):
    with open_mesh(tiny("llama"), workers) as mesh:
        stream = mesh.stream([5, 6, 7], max_new_tokens=200, temperature=0, ignore_eos=True)
        tokens = [next(stream).id for _ in range(3)]
        began = time.monotonic()
        mesh_home.remove("w1")
        gone = []
        for token in stream:
            tokens.append(token.id)
            if not gone and num_sessions(workers[1]) == 0:
                gone.append(time.monotonic() - began)
        assert gone[0] < CUT_SECONDS
        wait_until(lambda: workers[0].membership.removed() == {workers[1].id}, CUT_SECONDS)
        assert tokens == answer_alone(tiny("llama"), [5, 6, 7], 200)
        answer = ask(mesh)
        assert machines(answer) == ["w0", "w2", "local"]
        assert answer.token_ids == answer_alone(tiny("llama"))


def test_a_worker_cuts_off_a_node_of_whose_removal_it_learns(workers, mesh_home):
    """A stream that a removed worker has open to another ends, whatever the coordinator does."""
    with calling(workers[0], workers[1].membership.credentials()) as channel:
        opened, waiting = [], True

        def requests():
            while waiting:
                time.sleep(0.01)
                opened.append(True)
            yield from ()

        call = WorkerServiceStub(channel).Forward(requests())
        wait_until(lambda: opened)
        wait_until(lambda: workers[0].server._guard.num_calls)
        began = time.monotonic()
        mesh_home.remove("w1")
        with Registry([workers[0].address], discover=False) as registry:
            registry.find()
        with pytest.raises(grpc.RpcError) as cut:
            next(call)
        waiting = False
        assert cut.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert time.monotonic() - began < CUT_SECONDS


def test_certificates_are_renewed_while_a_worker_serves(tiny, loopback, mesh_home):
    old = utc_now() - timedelta(days=40)
    (worker,) = loopback.add(1, pair=lambda one: holding(one, certified(mesh_home.authority(), one.id, "worker", old)))
    before = worker.membership.credentials()
    with open_mesh(tiny("llama"), [worker]) as mesh:
        stream = mesh.stream([5, 6, 7], max_new_tokens=20, temperature=0, ignore_eos=True)
        next(stream)
        after = worker.membership.credentials()
        assert len(list(stream)) == 19
        assert ask(mesh).token_ids == answer_alone(tiny("llama"))
    assert after.member.node == before.member.node
    assert after.member.begins - before.member.begins > timedelta(days=39)
    assert after.key_pem != before.key_pem
    with Registry([worker.address], discover=False) as registry:
        registry.find()
        (known,) = registry._known.values()
        assert known.client.member == after.member  # as the handshake showed it, with no restart in between
    assert worker.membership.credentials() == after  # and not again


def test_the_coordinator_renews_its_own(mesh_home):
    own = mesh_home.credentials()
    mesh_home._own.keep(certified(mesh_home.authority(), own.member.node, "coordinator", utc_now() - timedelta(days=40)))
    renewed = mesh_home.credentials()
    assert renewed.member.node == own.member.node
    assert renewed.member.begins >= own.member.begins


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate], ids=["gzip", "deflate"])
@pytest.mark.parametrize("num_bytes", [1, BOMB_BYTES])
def test_compressed_messages_are_refused(workers, mesh_home, algorithm, num_bytes):
    with calling(workers[0], mesh_home.credentials()) as channel:
        stub = WorkerServiceStub(channel)
        part = pb.ForwardRequest(frame=pb.FramePart(data=bytes(num_bytes)))
        with pytest.raises(grpc.RpcError) as refused:
            list(stub.Forward(iter([part]), timeout=5, compression=algorithm))
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "Compression algorithm" in refused.value.details()
        assert stub.Echo(pb.EchoRequest(num_bytes=1), timeout=5).payload == b"\0"


def test_two_hundred_peers_that_talk_nonsense_keep_nobody_from_working(tiny, workers):
    seed = 20
    port = str(workers[0].port)
    command = [sys.executable, str(GARBAGE), "127.0.0.1", port, "200", str(seed)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peers:
        assert peers.stdout.readline() == "200\n", f"seed {seed}"
        with open_mesh(tiny("llama"), workers) as mesh:
            assert ask(mesh).token_ids == answer_alone(tiny("llama"))
        peers.communicate("")


SERVE_OLD = """
import asyncio, sys
from pathlib import Path
from layermesh.shared.tls_floor import refuse_old_tls
refuse_old_tls()
import grpc.aio
from layermesh.worker.listening import listen
from layermesh.worker.membership import Membership

async def main():
    server = grpc.aio.server()
    port = listen(server, "127.0.0.1", 0, Membership(Path(sys.argv[1])).credentials)
    await server.start()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)

asyncio.run(main())
"""


def handshake(port, credentials, version):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=credentials.current().authority_pem.decode())
    context.load_cert_chain(credentials.path)
    context.set_alpn_protocols(["h2"])
    context.minimum_version = context.maximum_version = version
    with socket.create_connection(("127.0.0.1", port), timeout=5) as plain, context.wrap_socket(plain) as wrapped:
        return wrapped.version()


def test_nothing_older_than_tls_1_3_is_spoken(mesh_home):
    assert mesh_home.credentials() is not None
    command = [sys.executable, "-c", SERVE_OLD, str(mesh_home.credentials_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        port = int(server.stdout.readline())
        assert handshake(port, mesh_home._own, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
        with pytest.raises((ssl.SSLError, ConnectionError)):
            handshake(port, mesh_home._own, ssl.TLSVersion.TLSv1_2)
        server.communicate("")


def test_nothing_of_it_lists_its_methods(workers, mesh_home):
    with calling(workers[0], mesh_home.credentials()) as channel:
        call = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        with pytest.raises(grpc.RpcError) as refused:
            list(call(iter([b""]), timeout=5))
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_health_is_told_to_the_mesh(workers):
    with calling(workers[0], workers[1].membership.credentials()) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"", timeout=5) == b"\x08\x01"


def test_a_node_that_nobody_knows_by_now_needs_a_certificate_all_the_same(workers, mesh_home):
    """The list of nodes is what people see; what counts is what the authority signed, and who was removed."""
    stranger = certified(mesh_home.authority(), new_node_id(), "worker", utc_now())
    with calling(workers[0], stranger) as channel:
        assert WorkerServiceStub(channel).Echo(pb.EchoRequest(num_bytes=2), timeout=5).payload == b"\0\0"


def test_an_unpaired_worker_beside_paired_ones_is_left_out_with_a_word(loopback, workers):
    (plain,) = loopback.add(1)
    with Registry([worker.address for worker in (*workers, plain)], discover=False) as registry:
        assert [peer.name for peer in registry.find()] == ["w0", "w1", "w2"]
        assert "start it again" in "".join(registry.notices)


def test_what_is_shown_is_json_all_the_same(workers):
    from layermesh.cli_status import workers_to_dict

    with Registry([workers[0].address], discover=False) as registry:
        assert json.dumps(workers_to_dict(registry.survey()))


def test_nobody_is_met_where_nobody_listens(mesh_home):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(MeshError, match="does not answer"):
            asyncio.run(Channels(mesh_home.credentials, mesh_home.credentials_path).meet(address, "worker x"))
