"""The invitations that are open on this machine, and those that were used: their hashes only."""

import hmac
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

from msgpack import UnpackException, packb, unpackb

from layermesh.shared.errors import AuthenticationError
from layermesh.shared.security.invitation import hash_secret
from layermesh.shared.security.private_files import read_private, write_private

MOST_INVITATIONS: Final = 256
_KEPT_SECONDS: Final = 86400.0  # after the end, to tell what was the matter with it
_MOST_BYTES: Final = MOST_INVITATIONS * 128


@dataclass(frozen=True, slots=True)
class OpenInvitation:
    """Hash of a secret, when it ends (by the clock of this machine, seconds since 1970), and whether it was used."""

    secret_hash: bytes
    ends: float
    is_used: bool = False


class Invitations:
    """What is kept in the file at `path`. Whoever changes it holds the lock of the mesh's folder meanwhile."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, secret_hashes: Sequence[bytes], ends: float, now: float) -> None:
        """Open invitations. Raises AuthenticationError where too many are open."""
        kept = [one for one in self._load() if one.ends + _KEPT_SECONDS > now]
        kept += [OpenInvitation(secret_hash, ends) for secret_hash in secret_hashes]
        if len(kept) > MOST_INVITATIONS:
            raise AuthenticationError(
                f"{len(kept)} invitations within a day, and {MOST_INVITATIONS} are remembered. Wait a while."
            )
        self._save(kept)

    def withdraw(self, secret_hashes: Sequence[bytes]) -> None:
        """Close those that were not used."""
        self._save([one for one in self._load() if one.is_used or one.secret_hash not in secret_hashes])

    def redeem(self, secret: bytes, now: float) -> None:
        """Use an invitation up. Raises AuthenticationError, with the reason, where there is none for this secret any more."""
        kept = self._load()
        found = _find(kept, hash_secret(secret))
        if found is None:
            raise AuthenticationError("the invitation is not known here: it was altered, withdrawn, or is of another day.")
        if found.is_used:
            raise AuthenticationError("the invitation was used already: each is for one worker.")
        if found.ends <= now:
            raise AuthenticationError("the invitation has expired: each is good for 15 minutes.")
        self._save([replace(one, is_used=True) if one is found else one for one in kept])

    def _load(self) -> list[OpenInvitation]:
        data = read_private(self._path, _MOST_BYTES)
        try:
            return [] if data is None else [_parse(item) for item in _unpack(data)]
        except (UnpackException, ValueError, TypeError) as error:
            raise AuthenticationError(f"{self._path} is damaged. Delete it; invitations that are open are lost.") from error

    def _save(self, kept: Sequence[OpenInvitation]) -> None:
        write_private(self._path, cast("bytes", packb([[one.secret_hash, one.ends, one.is_used] for one in kept])))


def _find(kept: Sequence[OpenInvitation], secret_hash: bytes) -> OpenInvitation | None:
    """Look at all of them, each for as long as at the one: how long it takes says nothing."""
    found = None
    for one in kept:
        if hmac.compare_digest(one.secret_hash, secret_hash):
            found = one
    return found


def _unpack(data: bytes) -> list[Any]:
    value = unpackb(data, max_array_len=MOST_INVITATIONS, max_map_len=0, max_ext_len=0)
    if not isinstance(value, list):
        raise TypeError("no list")
    return value


def _parse(item: Any) -> OpenInvitation:
    secret_hash, ends, is_used = item
    if not isinstance(secret_hash, bytes) or not isinstance(ends, float) or not isinstance(is_used, bool):
        raise TypeError("no invitation")
    return OpenInvitation(secret_hash, ends, is_used)
