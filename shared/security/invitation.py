"""An invitation to a mesh: one word to paste, by which both sides know each other."""

import base64
import re
import secrets
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final, Self

from layermesh.shared.errors import AuthenticationError

VALID_SECONDS: Final = 900.0
SECRET_BYTES: Final = 16
_PREFIX: Final = "lm1"
_TOKEN: Final = re.compile(r"lm1-([a-z2-7]{52})-([a-z2-7]{26})")


@dataclass(frozen=True, slots=True)
class Invitation:
    """The sha256 of the authority's public key, by which the guest knows the host, and a secret that works once."""

    authority: bytes
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.authority) != sha256().digest_size or len(self.secret) != SECRET_BYTES:
            raise ValueError(f"a hash of {len(self.authority)} bytes and a secret of {len(self.secret)}")

    @classmethod
    def make(cls, authority: bytes) -> Self:
        """Return a new invitation to the mesh of this authority."""
        return cls(authority, secrets.token_bytes(SECRET_BYTES))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return what somebody pasted. Raises AuthenticationError, which does not repeat it, for what is no invitation."""
        match = _TOKEN.fullmatch(text.strip().lower())
        try:
            if match is None:
                raise ValueError("not the form of an invitation")
            return cls(_decode(match[1]), _decode(match[2]))
        except ValueError as error:
            raise AuthenticationError(
                f"that is no invitation: one is {_PREFIX}- with 52 and 26 letters and digits behind, and this has "
                f"{len(text.strip())} characters in all. Copy the whole line that `layermesh invite` printed."
            ) from error

    @property
    def token(self) -> str:
        """The word to paste."""
        return f"{_PREFIX}-{_encode(self.authority)}-{_encode(self.secret)}"

    @property
    def secret_hash(self) -> bytes:
        """What the host keeps of the secret."""
        return hash_secret(self.secret)


def hash_secret(secret: bytes) -> bytes:
    """Return what is kept of a secret. It has 128 bits by itself, so a plain hash cannot be undone by trying."""
    return sha256(b"layermesh invitation 1\n" + secret).digest()


def _encode(data: bytes) -> str:
    return base64.b32encode(data).decode().rstrip("=").lower()


def _decode(text: str) -> bytes:
    data = base64.b32decode(text.upper() + "=" * (-len(text) % 8))
    if _encode(data) != text:
        raise ValueError("bits that mean nothing are set")
    return data
