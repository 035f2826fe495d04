"""Paired machines for tests, without anybody who pastes anything: the mesh is kept where a coordinator would keep it."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from layermesh.shared.security.authority import Authority
from layermesh.shared.security.credentials import Credentials
from layermesh.shared.security.keys import key_to_pem, make_key
from layermesh.shared.security.mesh_home import MeshHome
from layermesh.shared.security.nodes import NodeId, Role, node_id
from layermesh.worker.identity import worker_place
from layermesh.worker.membership import Membership
from tests.mesh.loopback import LoopbackWorker


def pair_store(mesh: MeshHome, store: Path, name: str) -> str:
    """Make the first worker of a store a node of `mesh`, as joining it would, and return its id."""
    authority, key = mesh.begin(), make_key()
    with worker_place(store) as place:
        certificate = mesh.enrol(key.public_key(), node_id(place.read_id()), name)
        credentials = Credentials(key_to_pem(key), certificate, authority.certificate)
        Membership(place.credentials).join(credentials)
        place.write_id(credentials.member.node)
    return credentials.member.node


def pair_with(mesh: MeshHome) -> Callable[[LoopbackWorker], Membership]:
    """Return what makes loopback workers nodes of `mesh`."""

    def pair(worker: LoopbackWorker) -> Membership:
        authority, key = mesh.begin(), make_key()
        certificate = mesh.enrol(key.public_key(), node_id(worker.id), worker.name)
        return holding(worker, Credentials(key_to_pem(key), certificate, authority.certificate))

    return pair


def holding(worker: LoopbackWorker, credentials: Credentials) -> Membership:
    """Give a loopback worker these credentials, whoever made them."""
    membership = Membership(worker.folder.parent / "keys" / f"{worker.name}.pem")
    membership.join(credentials)
    return membership


def certified(authority: Authority, node: str, role: Role, now: datetime) -> Credentials:
    """Credentials of a node whose certificate was made at `now`."""
    key = make_key()
    certificate = authority.issue(key.public_key(), NodeId(node), role, now)
    return Credentials(key_to_pem(key), certificate, authority.certificate)
