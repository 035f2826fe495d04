"""What a node shows others and knows them by: its key, its certificate, and that of its mesh's authority."""

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from layermesh.shared.errors import AuthenticationError
from layermesh.shared.security.authority import has_issued
from layermesh.shared.security.keys import key_from_pem, key_hash, public_key
from layermesh.shared.security.nodes import Member, read_member
from layermesh.shared.security.private_files import read_private, write_private

_MOST_BYTES: Final = 16 << 10
_PEM: Final = serialization.Encoding.PEM
MESH_CHARS: Final = 12  # of a hash, to tell meshes apart at a glance


@dataclass(frozen=True, slots=True)
class Credentials:
    """Raises ValueError where key, certificate and authority do not belong together."""

    key_pem: bytes = field(repr=False)
    certificate: x509.Certificate
    authority: x509.Certificate

    def __post_init__(self) -> None:
        if key_hash(key_from_pem(self.key_pem).public_key()) != key_hash(public_key(self.certificate)):
            raise ValueError("the key is not that of the certificate")
        if not has_issued(self.authority, self.certificate):
            raise ValueError("the certificate is not of this authority")
        read_member(self.certificate)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Return what `to_bytes` made; raises ValueError for anything else."""
        certificates = x509.load_pem_x509_certificates(data)
        if len(certificates) != 2:
            raise ValueError(f"{len(certificates)} certificates instead of two")
        key_pem = data[: data.index(b"-----BEGIN CERTIFICATE")]
        return cls(key_pem, *certificates)

    def to_bytes(self) -> bytes:
        """Return all of it as one text, as TLS libraries read it."""
        return self.key_pem + self.certificate_pem + self.authority_pem

    @property
    def certificate_pem(self) -> bytes:
        """The certificate as TLS libraries take it."""
        return self.certificate.public_bytes(_PEM)

    @property
    def authority_pem(self) -> bytes:
        """The authority's certificate as TLS libraries take it."""
        return self.authority.public_bytes(_PEM)

    @property
    def member(self) -> Member:
        """Who this node is."""
        return read_member(self.certificate)

    @property
    def mesh(self) -> str:
        """What tells its mesh from others."""
        return key_hash(public_key(self.authority)).hex()[:MESH_CHARS]


class KeptCredentials:
    """The credentials in the file at `path`, as they are now; another process may renew them. For any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._state: tuple[int, ...] | None = None
        self._known: Credentials | None = None

    def current(self) -> Credentials | None:
        """Return what is kept, or None. Raises AuthenticationError for a file that others can read, or a damaged one."""
        with self._lock:
            state = _state(self.path)
            if state != self._state or state is None:
                self._known = self._read()
                self._state = state
            return self._known

    def keep(self, credentials: Credentials) -> None:
        """Put `credentials` into the file, in place of what was there."""
        write_private(self.path, credentials.to_bytes())

    def _read(self) -> Credentials | None:
        data = read_private(self.path, _MOST_BYTES)
        if data is None:
            return None
        try:
            return Credentials.parse(data)
        except ValueError as error:
            raise AuthenticationError(
                f"{self.path} is damaged ({error}). Delete it, and pair this machine again: say `layermesh invite` on the "
                "coordinator."
            ) from error


def _state(path: Path) -> tuple[int, ...] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - one look
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size, status.st_mode, status.st_uid
