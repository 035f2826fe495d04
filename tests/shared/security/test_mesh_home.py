import stat
from datetime import timedelta

import pytest

from layermesh.shared.errors import AuthenticationError
from layermesh.shared.security import mesh_home
from layermesh.shared.security.authority import has_issued, utc_now
from layermesh.shared.security.keys import make_key
from layermesh.shared.security.mesh_home import MeshHome, is_due
from layermesh.shared.security.nodes import Member, new_node_id, read_member

NOW = utc_now()


@pytest.fixture
def mesh(tmp_path):
    return MeshHome(tmp_path / "mesh")


def enrol(mesh, name="attic", node=None, key=None):
    mesh.begin()
    return read_member(mesh.enrol((key or make_key()).public_key(), node or new_node_id(), name))


def test_there_is_nothing_before_somebody_is_invited(mesh, tmp_path):
    assert not mesh.exists
    assert mesh.credentials() is None
    assert (mesh.nodes(), mesh.removed()) == ([], frozenset())
    with pytest.raises(AuthenticationError, match="layermesh invite"):
        mesh.authority()
    assert not (tmp_path / "mesh").exists()


def test_a_mesh_begins_once_and_its_files_are_the_users_alone(mesh, tmp_path):
    assert mesh.begin().hash == mesh.begin().hash == MeshHome(tmp_path / "mesh").authority().hash
    mesh.invite(2)
    mesh.remove(enrol(mesh).node)
    assert mesh.credentials() is not None
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "mesh").iterdir()}
    assert set(modes) == {
        *("authority.pem", "coordinator.pem", "invitations.msgpack", "nodes.msgpack", "removed.msgpack", ".lock")
    }
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE((tmp_path / "mesh").stat().st_mode) == 0o700


def test_who_is_invited_is_admitted_once(mesh):
    (invitation,) = mesh.invite(1)
    wanted, key = new_node_id(), make_key()
    certificate = mesh.admit(invitation.secret, key.public_key(), wanted, "attic")
    assert has_issued(mesh.authority().certificate, certificate)
    assert (read_member(certificate).node, read_member(certificate).role) == (wanted, "worker")
    assert [(node.name, node.node) for node in mesh.nodes()] == [("attic", wanted)]
    with pytest.raises(AuthenticationError, match="used already"):
        mesh.admit(invitation.secret, key.public_key(), wanted, "attic")


def test_nobody_takes_over_anothers_id(mesh):
    first = enrol(mesh)
    assert enrol(mesh, "thief", first.node).node != first.node
    mesh.remove("attic")
    assert enrol(mesh, "attic", first.node).node not in mesh.removed()
    own = mesh.credentials().member
    assert enrol(mesh, "den", own.node).node != own.node


def test_who_has_the_key_keeps_the_id(mesh):
    key = make_key()
    first = enrol(mesh, key=key)
    assert enrol(mesh, node=first.node, key=key).node == first.node


def test_a_node_is_removed_by_its_name_or_its_id(mesh):
    first, second, third = enrol(mesh, "attic"), enrol(mesh, "attic"), enrol(mesh, "den")
    with pytest.raises(AuthenticationError, match=r"2 nodes are called 'attic'"):
        mesh.remove("attic")
    assert mesh.remove(first.node[:12]).node == first.node
    assert mesh.remove("attic").node == second.node
    with pytest.raises(AuthenticationError, match="no node is called"):
        mesh.remove("attic")
    assert [node.node for node in mesh.nodes()] == [third.node]
    assert mesh.signed_removals()[0] == 2
    assert mesh.signed_removals()[1].read(mesh.authority().certificate).nodes == {first.node, second.node} == mesh.removed()


def test_who_was_removed_is_not_renewed(mesh):
    member = enrol(mesh)
    key = make_key()
    assert read_member(mesh.renew(member.node, key.public_key())).node == member.node
    mesh.remove("attic")
    with pytest.raises(AuthenticationError, match="was removed"):
        mesh.renew(member.node, key.public_key())


def test_where_a_node_was_seen_is_remembered(mesh):
    member = enrol(mesh)
    mesh.note_seen(member, "attic", "10.0.0.3:50700")
    (node,) = mesh.nodes()
    assert (node.address, node.name) == ("10.0.0.3:50700", "attic")
    assert node.seen == pytest.approx(utc_now().timestamp(), abs=60)
    mesh.note_seen(member, "attic", "10.0.0.3:50700")
    assert mesh.nodes() == [node]  # a moment ago
    mesh.note_seen(member, "attic", "10.0.0.4:50700")
    assert mesh.nodes()[0].address == "10.0.0.4:50700"


@pytest.mark.parametrize(
    ("age", "due"),
    [(timedelta(), False), (timedelta(days=29), False), (timedelta(days=31), True), (timedelta(days=-2), True)],
    ids=str,
)
def test_a_certificate_is_due_after_a_month(age, due):
    begins = NOW - age - timedelta(hours=25)
    assert is_due(Member(new_node_id(), "worker", begins, begins + timedelta(days=366)), NOW) is due


@pytest.mark.parametrize("hours", [-3, 3])
def test_a_clock_that_is_hours_off_changes_nothing(mesh, monkeypatch, hours):
    member = enrol(mesh)
    own = mesh.credentials()
    monkeypatch.setattr(mesh_home, "utc_now", lambda: NOW + timedelta(hours=hours))
    assert mesh.credentials() == own
    assert not is_due(member, mesh_home.utc_now())
    assert member.begins < mesh_home.utc_now() < member.ends


@pytest.mark.parametrize("name", ["nodes.msgpack", "authority.pem", "removed.msgpack"])
def test_a_damaged_file_is_named(mesh, tmp_path, name):
    mesh.remove(enrol(mesh).node)
    (tmp_path / "mesh" / name).write_bytes(b"\xc1 damaged")
    again = MeshHome(tmp_path / "mesh")
    with pytest.raises(AuthenticationError, match=name):
        again.authority() if name == "authority.pem" else again.nodes()
