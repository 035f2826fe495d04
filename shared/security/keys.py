"""Keys of nodes and authorities, ECDSA on P-256, and requests for certificates."""

from hashlib import sha256
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from layermesh.shared.errors import AuthenticationError

MOST_REQUEST_BYTES: Final = 4096


def make_key() -> ec.EllipticCurvePrivateKey:
    """Return a new key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the key as it lies on disk, not encrypted: the file's mode protects it."""
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def key_from_pem(data: bytes) -> ec.EllipticCurvePrivateKey:
    """Return the first key in `data`; raises ValueError where it is none of ours."""
    key = serialization.load_pem_private_key(data, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("not a key on P-256")
    _check_curve(key.curve)
    return key


def key_hash(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return the sha256 of a public key, as it stands in certificates."""
    encoded = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return sha256(encoded).digest()


def public_key(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """Return the key that a certificate is about; raises ValueError where it is none of ours."""
    try:
        key = certificate.public_key()
    except UnsupportedAlgorithm as error:
        raise ValueError("not a key on P-256") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("not a key on P-256")
    _check_curve(key.curve)
    return key


def make_request(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a request to certify the key, in DER. It names nobody: that is the authority's to say."""
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)


def read_request(data: bytes) -> ec.EllipticCurvePublicKey:
    """Return the key that a request is about. Raises AuthenticationError for one that its owner did not sign."""
    try:
        if len(data) > MOST_REQUEST_BYTES:
            raise ValueError("too large")
        request = x509.load_der_x509_csr(data)
        key = request.public_key()
        if not request.is_signature_valid or not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError("not signed by a key on P-256")
        _check_curve(key.curve)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise AuthenticationError(
            "a request for a certificate that makes no sense. Install the same layermesh there."
        ) from error
    return key


def _check_curve(curve: ec.EllipticCurve) -> None:
    if not isinstance(curve, ec.SECP256R1):
        raise ValueError(f"a key on {curve.name}, not on P-256")
