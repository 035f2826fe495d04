"""The authority of a mesh: whom it certifies belongs to it."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from layermesh.shared.security.keys import key_from_pem, key_hash, key_to_pem, make_key, public_key
from layermesh.shared.security.nodes import NodeId, Role, names_of

AUTHORITY_DAYS: Final = 3650
NODE_DAYS: Final = 365
BACKDATED: Final = timedelta(hours=25)  # clocks differ, and time zones are mistaken for them
_WHAT: Final = x509.KeyUsage(
    digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
    key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
)  # fmt: skip
_USES: Final = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])


@dataclass(frozen=True, slots=True)
class Authority:
    """A key that certifies nodes, and the certificate by which they know each other."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, now: datetime) -> Self:
        """Return a new authority, for a new mesh."""
        key = make_key()
        name = _name(f"layermesh {key_hash(key.public_key()).hex()[:16]}")
        builder = _certificate(name, name, key.public_key(), now, AUTHORITY_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_WHAT, critical=True)
        return cls(key, builder.sign(key, hashes.SHA256()))

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Return what `to_bytes` made; raises ValueError for anything else."""
        authority = cls(key_from_pem(data), x509.load_pem_x509_certificate(data))
        if key_hash(authority.key.public_key()) != authority.hash:
            raise ValueError("the key is not that of the certificate")
        return authority

    def to_bytes(self) -> bytes:
        """Return key and certificate, to be kept."""
        return key_to_pem(self.key) + self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def hash(self) -> bytes:
        """The sha256 of its public key, which is what the mesh is known by."""
        return key_hash(public_key(self.certificate))

    def issue(self, key: ec.EllipticCurvePublicKey, node: NodeId, role: Role, now: datetime) -> x509.Certificate:
        """Return a certificate for a year, which says that whoever has `key` is `node`."""
        builder = _certificate(_name(node), self.certificate.subject, key, now, NODE_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(names_of(node, role), critical=False)
        return builder.add_extension(_USES, critical=False).sign(self.key, hashes.SHA256())

    def sign(self, data: bytes) -> bytes:
        """Return a signature of `data`, which must say itself what kind of data it is."""
        return self.key.sign(data, ec.ECDSA(hashes.SHA256()))


def is_signed(data: bytes, signature: bytes, authority: x509.Certificate) -> bool:
    """Whether the authority has signed `data`."""
    try:
        public_key(authority).verify(signature, data, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True


def has_issued(authority: x509.Certificate, certificate: x509.Certificate) -> bool:
    """Whether the authority has signed `certificate`, whether or not that still holds."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        return False
    return True


def utc_now() -> datetime:
    """Return what this machine's clock says, for the dates of certificates."""
    return datetime.now(UTC)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    dated = x509.CertificateBuilder().not_valid_before(now - BACKDATED).not_valid_after(now + timedelta(days=days))
    named = dated.subject_name(subject).issuer_name(issuer)
    return named.public_key(key).serial_number(x509.random_serial_number())
