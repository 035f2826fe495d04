"""The list of nodes that were removed from a mesh, signed by its authority."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, cast

from cryptography import x509
from msgpack import UnpackException, packb, unpackb

from layermesh.shared.errors import AuthenticationError
from layermesh.shared.security.authority import Authority, is_signed
from layermesh.shared.security.nodes import NodeId, node_id
from layermesh.shared.security.private_files import read_private, write_private

MOST_NODES: Final = 4096
MOST_BYTES: Final = MOST_NODES * 40 + 1024
_MOST_SIGNATURE: Final = 128
_KIND: Final = "layermesh removed nodes 1"


@dataclass(frozen=True, slots=True)
class Removals:
    """Who was removed, and the number of the list: the newest one holds."""

    number: int = 0
    nodes: frozenset[NodeId] = frozenset()

    def with_node(self, node: NodeId) -> "Removals":
        """Return the next list, with `node` on it."""
        return Removals(self.number + 1, self.nodes | {node})


@dataclass(frozen=True, slots=True)
class SignedRemovals:
    """A list as it travels and is kept."""

    body: bytes
    signature: bytes

    @classmethod
    def make(cls, removals: Removals, authority: Authority) -> Self:
        """Sign a list. Raises ValueError for one that is too long."""
        if len(removals.nodes) > MOST_NODES:
            raise ValueError(f"{len(removals.nodes)} nodes were removed, more than the {MOST_NODES} that can be remembered")
        body = cast("bytes", packb([_KIND, removals.number, sorted(removals.nodes)]))
        return cls(body, authority.sign(body))

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Return what `to_bytes` made; raises ValueError for anything else. It may still be signed by anybody."""
        body, signature = _unpack(data, 2)
        if not isinstance(body, bytes) or not isinstance(signature, bytes):
            raise ValueError("no list of removed nodes")
        return cls(body, signature)

    def to_bytes(self) -> bytes:
        """Return it as it is kept."""
        return cast("bytes", packb([self.body, self.signature]))

    def read(self, authority: x509.Certificate) -> Removals:
        """Return the list. Raises AuthenticationError where the authority did not sign it."""
        if len(self.signature) > _MOST_SIGNATURE or not is_signed(self.body, self.signature, authority):
            raise AuthenticationError("a list of removed nodes that the mesh's authority did not sign.")
        try:
            kind, number, nodes = _unpack(self.body, 3)
            if kind != _KIND or type(number) is not int or not 0 <= number < 1 << 63 or not isinstance(nodes, list):
                raise ValueError("no list of removed nodes")
            return Removals(number, frozenset(node_id(str(node)) for node in nodes))
        except ValueError as error:
            raise AuthenticationError(f"a list of removed nodes that makes no sense ({error}).") from error


class KeptRemovals:
    """The newest list that is known here, in the file at `path`; another process may bring a newer one.

    `authority` returns whose signature counts; without one nobody is removed.
    """

    def __init__(self, path: Path, authority: Callable[[], x509.Certificate | None]) -> None:
        self.path = path
        self._authority = authority
        self._state: tuple[int, int] | None = None
        self._signed: SignedRemovals | None = None
        self._known = Removals()

    def current(self) -> Removals:
        """Return the list as it is now. Raises AuthenticationError for a damaged file: nobody may come back by that."""
        state = self._look()
        if state != self._state:
            authority = self._authority()
            self._signed = self._read()
            self._known = Removals() if self._signed is None or authority is None else self._signed.read(authority)
            self._state = state
        return self._known

    def signed(self) -> SignedRemovals | None:
        """Return the list with its signature; None where there never was one."""
        self.current()
        return self._signed

    def keep(self, signed: SignedRemovals) -> bool:
        """Take over a list if it is newer than the one that is known; tell whether it was. Raises AuthenticationError."""
        authority = self._authority()
        if authority is None or signed.read(authority).number <= self.current().number:
            return False
        write_private(self.path, signed.to_bytes())
        return True

    def forget(self) -> None:
        """Begin anew, in another mesh."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> SignedRemovals | None:
        data = read_private(self.path, MOST_BYTES + 2 * _MOST_SIGNATURE)
        try:
            return None if data is None else SignedRemovals.parse(data)
        except ValueError as error:
            raise AuthenticationError(f"{self.path} is damaged. Pair this machine again, or restore the file.") from error

    def _look(self) -> tuple[int, int] | None:
        try:
            status = self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise AuthenticationError(f"{self.path} cannot be read ({error.strerror}). Look at who owns it.") from error
        return status.st_ino, status.st_mtime_ns


def _unpack(data: bytes, length: int) -> list[Any]:
    try:
        value = unpackb(data, max_array_len=MOST_NODES, max_map_len=0, max_ext_len=0, max_str_len=64, max_bin_len=MOST_BYTES)
    except (UnpackException, ValueError) as error:
        raise ValueError("no list of removed nodes") from error
    if not isinstance(value, list) or len(value) != length:
        raise ValueError("no list of removed nodes")
    return value
