"""What a worker knows of the mesh that it belongs to, and who does not any more."""

from collections.abc import Set as AbstractSet
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from layermesh.shared.errors import AuthenticationError
from layermesh.shared.security.credentials import Credentials, KeptCredentials
from layermesh.shared.security.keys import key_to_pem
from layermesh.shared.security.nodes import NodeId
from layermesh.shared.security.removals import KeptRemovals, SignedRemovals


class Membership:
    """A worker's credentials, in the file at `path`, and beside it who was removed from its mesh."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._kept = KeptCredentials(path)
        self._removals = KeptRemovals(path.with_suffix(".removed"), self._authority)

    def credentials(self) -> Credentials | None:
        """Return what it shows others; None where it is not paired."""
        return self._kept.current()

    def removed(self) -> AbstractSet[NodeId]:
        """Return who was removed."""
        return self._removals.current().nodes

    def join(self, credentials: Credentials, removals: SignedRemovals | None = None) -> None:
        """Belong to a mesh from now on. Raises AuthenticationError for a list that its authority did not sign."""
        self._removals.forget()
        self._kept.keep(credentials)
        if removals is not None:
            self._removals.keep(removals)

    def renew(self, key: ec.EllipticCurvePrivateKey, certificate: bytes) -> None:
        """Take over a new certificate for `key`. Raises AuthenticationError for one of another node or authority."""
        known = self.credentials()
        try:
            if known is None:
                raise ValueError("this worker is not paired")
            made = Credentials(key_to_pem(key), x509.load_der_x509_certificate(certificate), known.authority)
            if (made.member.node, made.member.role) != (known.member.node, known.member.role):
                raise ValueError("it is of another node")
        except ValueError as error:
            raise AuthenticationError(f"that is no certificate for this worker: {error}.") from error
        self._kept.keep(made)

    def learn_removed(self, signed: SignedRemovals) -> tuple[int, bool]:
        """Take over a list if it is newer; return the number of the newest, and whether it was. Raises AuthenticationError."""
        is_new = self._removals.keep(signed)
        return self._removals.current().number, is_new

    def _authority(self) -> x509.Certificate | None:
        known = self._kept.current()
        return None if known is None else known.authority
