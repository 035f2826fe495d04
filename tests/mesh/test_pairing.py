"""Guest and host of an invitation, over real sockets: who gets in, who does not, and what nobody is told."""

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from msgpack import packb

from layermesh.coordinator import enrolment
from layermesh.coordinator.enrolment import Enrolment
from layermesh.pairing import JoinOptions, pair
from layermesh.shared.errors import AuthenticationError, AwayError, UsageError
from layermesh.shared.security import mesh_home as mesh_home_module
from layermesh.shared.security.authority import utc_now
from layermesh.shared.security.enrolment_wire import hang_up
from layermesh.shared.security.invitation import Invitation
from layermesh.shared.security.mesh_home import MeshHome
from layermesh.shared.security.nodes import new_node_id
from layermesh.worker.identity import worker_place
from layermesh.worker.joining import StrangerError, join
from tests.mesh.pairing import certified

LAYERMESH = (sys.executable, "-m", "layermesh")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def mesh(tmp_path):
    home = MeshHome(tmp_path / "desk" / "mesh")
    home.begin()
    return home


@asynccontextmanager
async def hosting(mesh, guests=None, problems=None):
    guests, problems = [] if guests is None else guests, [] if problems is None else problems
    async with Enrolment(mesh, guests.append, problems.append, "127.0.0.1", 0) as host:
        yield f"127.0.0.1:{host.port}"


def joining(mesh, *invitations, during=None):
    """What comes of joining with each invitation in turn: credentials, or why not; and who the host says has joined."""

    async def run():
        guests, outcomes = [], []
        async with hosting(mesh, guests) as address:
            for invitation in invitations:
                try:
                    outcomes.append((await join(invitation, address, new_node_id(), "attic")).credentials)
                except AuthenticationError as error:
                    outcomes.append(error)
            await asyncio.sleep(0)
        return outcomes, [guest.name for guest in guests]

    return asyncio.run(run())


def test_who_was_invited_gets_a_certificate_once(mesh):
    (invitation,) = mesh.invite(1)
    (first, second), guests = joining(mesh, invitation, invitation)
    assert first.authority == mesh.authority().certificate
    assert (first.member.role, guests) == ("worker", ["attic"])
    assert first.member.node == mesh.nodes()[0].node
    assert "was used already" in str(second)
    assert second.exit_code == 5


def test_who_was_removed_before_is_told_to_those_who_join(mesh):
    first, second = mesh.invite(2)

    async def run():
        async with hosting(mesh) as address:
            gone = await join(first, address, new_node_id(), "attic")
            mesh.remove("attic")
            return gone, await join(second, address, gone.credentials.member.node, "attic")

    gone, joined = asyncio.run(run())
    assert joined.removals.read(joined.credentials.authority).nodes == {gone.credentials.member.node}
    assert joined.credentials.member.node != gone.credentials.member.node


def test_an_invitation_that_has_expired_is_refused(mesh, monkeypatch):
    (invitation,) = mesh.invite(1)
    monkeypatch.setattr(mesh_home_module, "utc_now", lambda: utc_now() + timedelta(minutes=16))
    (refused,), guests = joining(mesh, invitation)
    assert "has expired" in str(refused)
    assert guests == []


def test_an_invitation_that_was_altered_is_refused(mesh):
    (invitation,) = mesh.invite(1)
    altered = Invitation(invitation.authority, bytes([invitation.secret[0] ^ 1]) + invitation.secret[1:])
    (refused, joined), _ = joining(mesh, altered, invitation)
    assert "not known here" in str(refused)
    assert joined.member.role == "worker"  # the true one still works


def test_the_secret_of_another_mesh_is_not_said(mesh, monkeypatch):
    (invitation,) = mesh.invite(1)
    other = Invitation(bytes(32), invitation.secret)
    asked = []
    answer = Enrolment._answer

    async def listening(self, message, address):
        asked.append(message)
        return await answer(self, message, address)

    monkeypatch.setattr(Enrolment, "_answer", listening)
    (refused,), _ = joining(mesh, other)
    assert isinstance(refused, StrangerError)
    assert "not the one that the invitation is for" in str(refused)
    assert [message["ask"] for message in asked] == ["authority"]
    assert not any("secret" in message for message in asked)


def impostor(mesh, tmp_path, made):
    """A host that knows the authority, as everybody can, and shows the certificate that `made` returns."""
    path = tmp_path / "impostor.pem"
    path.write_bytes(made.to_bytes())
    heard = []

    async def serve(reader, writer):
        length = int.from_bytes(await reader.read(4))
        if not length:  # the guest has left
            await hang_up(writer)
            return
        heard.append(await reader.readexactly(length))
        from cryptography.hazmat.primitives.serialization import Encoding

        data = packb({"authority": mesh.authority().certificate.public_bytes(Encoding.DER)})
        writer.write(len(data).to_bytes(4) + data)
        await writer.drain()
        await hang_up(writer)

    async def run():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        async with server:
            address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            with pytest.raises(StrangerError) as refused:
                await join(Invitation(mesh.authority().hash, b"sixteen secrets!"), address, new_node_id(), "attic")
        return str(refused.value)

    return asyncio.run(run()), heard


@pytest.mark.parametrize("case", ["another authority", "a worker of the mesh", "an old certificate"])
def test_the_secret_is_not_said_to_who_only_knows_the_authority(mesh, tmp_path, case):
    from layermesh.shared.security.authority import Authority

    node, now = new_node_id(), utc_now()
    made = {
        "another authority": lambda: certified(Authority.make(now), node, "coordinator", now),
        "a worker of the mesh": lambda: certified(mesh.authority(), node, "worker", now),
        "an old certificate": lambda: certified(mesh.authority(), node, "coordinator", now - timedelta(days=400)),
    }[case]()
    said, heard = impostor(mesh, tmp_path, made)
    assert "The secret was not sent" in said
    assert len(heard) == 1
    assert b"sixteen secrets!" not in b"".join(heard)


def test_nobody_guesses_for_long(mesh, monkeypatch):
    monkeypatch.setattr(enrolment, "MOST_ATTEMPTS", 5)
    problems = []

    async def run():
        async with hosting(mesh, problems=problems) as address:
            for _ in range(5):
                with pytest.raises(AuthenticationError, match="not known here"):
                    await join(Invitation.make(mesh.authority().hash), address, new_node_id(), "x")

    asyncio.run(run())
    assert ["5 tries to pair failed" in str(problem) for problem in problems] == [True]


NONSENSE = [
    {},
    {"ask": "join"},
    {"ask": "join", "version": 2},
    {"ask": "join", "version": 1, "secret": b"short"},
    {"ask": "join", "version": 1, "secret": bytes(16), "node": "../../x", "name": "x", "request": b""},
    {"ask": "join", "version": 1, "secret": bytes(16), "node": "0" * 32, "name": 5, "request": b""},
    {"ask": "join", "version": 1, "secret": bytes(16), "node": "0" * 32, "name": "x", "request": b"\x30\x00"},
    {"ask": "join", "version": 1, "secret": bytes(16), "node": "0" * 32, "name": "x" * 4000, "request": b"x"},
]


def test_nonsense_is_answered_or_left_and_does_not_use_an_invitation_up(mesh):
    (invitation,) = mesh.invite(1)

    async def say(address, data):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
        writer.write(data)
        answer = await asyncio.wait_for(reader.read(), 5)
        await hang_up(writer)
        return answer

    async def run():
        async with hosting(mesh) as address:
            for message in NONSENSE:
                data = packb(message)
                assert b"refused" in await say(address, len(data).to_bytes(4) + data)
            for data in (b"\xff\xff\xff\xff", b"\0\0\0\1\xc1", b"\0\0\0\5\xdf\xff\xff\xff\xff", b"\0\0\0\1\x05"):
                assert await say(address, data) == b""
            return (await join(invitation, address, new_node_id(), "attic")).credentials

    assert asyncio.run(run()).member.role == "worker"


def test_nobody_there_is_said_so():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(AwayError, match="Does `layermesh invite` still run there"):
            asyncio.run(join(Invitation(bytes(32), bytes(16)), f"127.0.0.1:{taken.getsockname()[1]}", new_node_id(), "x"))


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERMESH_HOME", str(tmp_path / "den"))
    with worker_place(tmp_path / "den" / "store") as place:
        yield place


def test_a_worker_beside_its_coordinator_pairs_itself(place, tmp_path, monkeypatch, mesh):
    monkeypatch.setenv("LAYERMESH_HOME", str(tmp_path / "desk"))
    paired = pair(place, "desk", JoinOptions()).credentials()
    assert paired.member.node == place.read_id() == mesh.nodes()[0].node
    assert pair(place, "desk", JoinOptions()).credentials() == paired
    mesh.remove("desk")
    assert pair(place, "desk", JoinOptions()).credentials() == paired  # and is refused by the others


def test_a_worker_that_nobody_invited_is_not_paired(place):
    assert pair(place, "den", JoinOptions()).credentials() is None


@pytest.mark.parametrize("form", ["file", "variable"])
def test_an_invitation_can_come_from_a_file_or_the_environment(place, mesh, tmp_path, monkeypatch, form):
    (invitation,) = mesh.invite(1)
    (tmp_path / "invitation").write_text(f"{invitation.token}\n")
    monkeypatch.setenv("LAYERMESH_JOIN", invitation.token)
    given = {"file": {"file": tmp_path / "invitation"}, "variable": {"token": invitation.token}}[form]
    before = place.read_id()

    async def run():
        async with hosting(mesh) as address:
            await asyncio.to_thread(pair, place, "den", JoinOptions(**given, coordinator=address))

    asyncio.run(run())
    assert "LAYERMESH_JOIN" not in os.environ
    again = pair(place, "den", JoinOptions(token=invitation.token))  # as a unit would say at each start
    assert again.credentials().member.node == place.read_id() == before
    assert (again.path.stat().st_mode & 0o777, again.path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_file_that_is_not_there_is_named(place, tmp_path):
    with pytest.raises(UsageError, match="no invitation can be read from"):
        pair(place, "den", JoinOptions(file=tmp_path / "nothing"))


def run_invite(home, *options):
    return subprocess.Popen(
        [*LAYERMESH, "invite", "--no-discovery", "--host", "127.0.0.1", "--port", "0", *options],
        env={**os.environ, "LAYERMESH_HOME": str(home)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_invitation_is_taken_back_by_ctrl_c(tmp_path, number):
    with run_invite(tmp_path / "home") as process:
        words = process.stdout.readline().split()
        assert words[:3] == ["layermesh", "worker", "--join"]
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert words[3] not in said
    with pytest.raises(AuthenticationError, match="not known here"):
        MeshHome(tmp_path / "home" / "mesh")._invitations.redeem(Invitation.parse(words[3]).secret, utc_now().timestamp())


def test_several_are_invited_at_once_and_programs_can_read_it(tmp_path):
    with run_invite(tmp_path / "home", "--count", "2", "--json") as process:
        told = json.loads(process.stdout.readline())
        assert told["commands"] == [f"layermesh worker --join {token}" for token in told["tokens"]]
        for number, token in enumerate(told["tokens"]):
            invitation = Invitation.parse(token)
            asyncio.run(join(invitation, f"127.0.0.1:{told['port']}", new_node_id(), f"w{number}"))
        said = process.communicate(timeout=30)[1]
    assert process.returncode == 0
    assert "w0 (127.0.0.1) has joined the mesh" in said
    assert "w1 (127.0.0.1) has joined the mesh" in said
