"""The coordinator's side of a mesh, in a folder of its own: the authority, its own credentials, and who belongs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from filelock import FileLock

from layermesh.shared.errors import AuthenticationError, ResourceError
from layermesh.shared.library.disk import is_file, storing
from layermesh.shared.library.home import data_home
from layermesh.shared.security.authority import BACKDATED, Authority, has_issued, utc_now
from layermesh.shared.security.credentials import Credentials, KeptCredentials
from layermesh.shared.security.invitation import VALID_SECONDS, Invitation
from layermesh.shared.security.invitations import Invitations
from layermesh.shared.security.keys import key_hash, key_to_pem, make_key
from layermesh.shared.security.node_list import NodeList, PairedNode
from layermesh.shared.security.nodes import Member, NodeId, new_node_id
from layermesh.shared.security.private_files import make_private_folder, read_private, write_private
from layermesh.shared.security.removals import KeptRemovals, SignedRemovals

RENEWED_AFTER: Final = timedelta(days=30)
SEEN_SECONDS: Final = 60.0  # between two notes that a node was seen
_MOST_BYTES: Final = 16 << 10


class MeshHome:
    """What is kept in `folder` (by default `mesh` in layermesh's own); nothing, as long as nobody was invited."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or data_home() / "mesh"
        self._authority = self.folder / "authority.pem"
        self._own = KeptCredentials(self.folder / "coordinator.pem")
        self._nodes = NodeList(self.folder / "nodes.msgpack")
        self._invitations = Invitations(self.folder / "invitations.msgpack")
        self._removed = KeptRemovals(self.folder / "removed.msgpack", self._certificate)

    @property
    def exists(self) -> bool:
        """Whether there is a mesh."""
        return is_file(self._authority)

    @property
    def credentials_path(self) -> Path:
        """Where the coordinator's own credentials lie, for libraries that read files."""
        return self._own.path

    def authority(self) -> Authority:
        """Return the authority. Raises AuthenticationError where there is none, and for a file that others can read."""
        data = read_private(self._authority, _MOST_BYTES)
        if data is None:
            raise AuthenticationError(f"there is no mesh in {self.folder} yet. Begin one: `layermesh invite`.")
        try:
            return Authority.parse(data)
        except ValueError as error:
            raise AuthenticationError(
                f"{self._authority} is damaged ({error}). Restore it, or begin a new mesh without it."
            ) from error

    def begin(self) -> Authority:
        """Return the authority, made now if there is none yet."""
        with self._changing():
            if not self.exists:
                write_private(self._authority, Authority.make(utc_now()).to_bytes())
            return self.authority()

    def credentials(self) -> Credentials | None:
        """Return the coordinator's credentials, renewed if they are older than a month; None where there is no mesh."""
        if not self.exists:
            return None
        known = self._own.current()
        if known is not None and not is_due(known.member, utc_now()):
            return known
        try:
            with self._changing():
                self._own.keep(self._renewed(known))
        except ResourceError:  # in a folder that cannot be written they serve as long as they hold
            if known is None or utc_now() > known.member.ends:
                raise
        return self._own.current()

    def removed(self) -> frozenset[NodeId]:
        """Return who was removed; nobody where there is no mesh, which a folder that we may not look into has not."""
        return self._removed.current().nodes if self.exists else frozenset()

    def signed_removals(self) -> tuple[int, SignedRemovals | None]:
        """Return the list of who was removed as others may check it, and its number."""
        if not self.exists:
            return 0, None
        number = self._removed.current().number
        return number, self._removed.signed()

    def nodes(self) -> list[PairedNode]:
        """Return who is paired, ordered by name."""
        removed = self.removed()
        known = [node for node in self._nodes.load().values() if node.node not in removed] if self.exists else []
        return sorted(known, key=lambda node: (node.name, node.node))

    def invite(self, count: int, seconds: float = VALID_SECONDS) -> list[Invitation]:
        """Return new invitations, in a mesh that begins with the first."""
        authority = self.begin()
        made = [Invitation.make(authority.hash) for _ in range(count)]
        with self._changing():
            now = utc_now().timestamp()
            self._invitations.add([one.secret_hash for one in made], now + seconds, now)
        return made

    def withdraw(self, invitations: Sequence[Invitation]) -> None:
        """Take back those that were not used."""
        with self._changing():
            self._invitations.withdraw([one.secret_hash for one in invitations])

    def admit(self, secret: bytes, key: ec.EllipticCurvePublicKey, wanted: NodeId, name: str) -> x509.Certificate:
        """Certify a worker that was invited; its id is `wanted` unless that is another's, or was removed.

        Raises AuthenticationError for a secret that is not, or not any more, an invitation.
        """
        with self._changing():
            self._invitations.redeem(secret, utc_now().timestamp())
            return self._enrol(key, wanted, name)

    def enrol(self, key: ec.EllipticCurvePublicKey, wanted: NodeId, name: str) -> x509.Certificate:
        """Certify a worker of this user's on this machine."""
        with self._changing():
            return self._enrol(key, wanted, name)

    def renew(self, node: NodeId, key: ec.EllipticCurvePublicKey) -> x509.Certificate:
        """Return a new certificate for a node. Raises AuthenticationError for one that was removed."""
        with self._changing():
            if node in self.removed():
                raise AuthenticationError(f"node {node} was removed from this mesh.")
            certificate = self.authority().issue(key, node, "worker", utc_now())
            known = self._nodes.load()
            before = known.get(node) or _paired(certificate, node, utc_now())
            self._nodes.save(
                known | {node: replace(before, key_hash=key_hash(key), ends=certificate.not_valid_after_utc.timestamp())}
            )
            return certificate

    def remove(self, name: str) -> PairedNode:
        """Remove the node with this name, or with an id that begins so. Raises AuthenticationError for none or several."""
        with self._changing():
            found = self._find(name)
            removals = self._removed.current().with_node(found.node)
            self._removed.keep(SignedRemovals.make(removals, self.authority()))
            return found

    def note_seen(self, member: Member, name: str, address: str) -> None:
        """Remember that a node answered at `address`."""
        with self._changing():
            known, now = self._nodes.load(), utc_now()
            before = known.get(member.node) or PairedNode(member.node, name, b"", member.begins.timestamp(), 0.0)
            if before.address == address and before.seen is not None and 0 <= now.timestamp() - before.seen < SEEN_SECONDS:
                return
            seen = replace(before, name=name[:80], seen=now.timestamp(), address=address, ends=member.ends.timestamp())
            self._nodes.save(known | {member.node: seen})

    def _find(self, name: str) -> PairedNode:
        nodes = self.nodes()
        found = [node for node in nodes if name in (node.name, node.node)] or [
            node for node in nodes if len(name) >= 6 and node.node.startswith(name)
        ]
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(node.node[:12] for node in found)
            raise AuthenticationError(f"{len(found)} nodes are called {name[:80]!r}. Say which one by its id: {ids}.")
        raise AuthenticationError(f"no node is called {name[:80]!r}. `layermesh nodes` lists them.")

    def _enrol(self, key: ec.EllipticCurvePublicKey, wanted: NodeId, name: str) -> x509.Certificate:
        known, now = self._nodes.load(), utc_now()
        node = wanted if self._is_free(wanted, key, known.get(wanted), now) else new_node_id()
        certificate = self.authority().issue(key, node, "worker", now)
        self._nodes.save(known | {node: replace(_paired(certificate, node, now), name=name[:80], key_hash=key_hash(key))})
        return certificate

    def _is_free(self, node: NodeId, key: ec.EllipticCurvePublicKey, known: PairedNode | None, now: datetime) -> bool:
        """Whether whoever has `key` may be called `node`: nobody else is, and nobody was that had to go."""
        own = self._own.current()
        if node in self.removed() or (own is not None and own.member.node == node):
            return False
        return known is None or known.key_hash == key_hash(key) or known.ends <= now.timestamp()

    def _renewed(self, known: Credentials | None) -> Credentials:
        authority, key = self.authority(), make_key()
        fits = known is not None and has_issued(authority.certificate, known.certificate)
        node = known.member.node if known is not None and fits else new_node_id()
        return Credentials(
            key_to_pem(key), authority.issue(key.public_key(), node, "coordinator", utc_now()), authority.certificate
        )

    def _certificate(self) -> x509.Certificate | None:
        return self.authority().certificate if self.exists else None

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with storing(self.folder, _MOST_BYTES):
            make_private_folder(self.folder)
            with FileLock(self.folder / ".lock", mode=0o600):
                yield


def is_due(member: Member, now: datetime) -> bool:
    """Whether a certificate should be renewed: it is older than a month, or ends soon, or says it was made in the future."""
    begun = member.begins + BACKDATED
    return not begun - BACKDATED <= now <= begun + RENEWED_AFTER


def _paired(certificate: x509.Certificate, node: NodeId, now: datetime) -> PairedNode:
    return PairedNode(node, node[:12], b"", now.timestamp(), certificate.not_valid_after_utc.timestamp())
