"""The nodes of a mesh as its coordinator remembers them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, cast

from msgpack import UnpackException, packb, unpackb

from layermesh.shared.errors import AuthenticationError
from layermesh.shared.security.nodes import NodeId, node_id
from layermesh.shared.security.private_files import read_private, write_private

MOST_NODES: Final = 4096
_MOST_CHARS: Final = 300
_MOST_BYTES: Final = MOST_NODES * 1024


@dataclass(frozen=True, slots=True)
class PairedNode:
    """A worker that was paired: times in seconds since 1970, by this machine's clock.

    `name` is what its user calls it, `key_hash` that of its public key, and `address` (HOST:PORT) where it was seen last.
    """

    node: NodeId
    name: str
    key_hash: bytes
    paired: float
    ends: float
    seen: float | None = None
    address: str = ""

    def __post_init__(self) -> None:
        node_id(self.node)
        if len(self.name) > _MOST_CHARS or len(self.address) > _MOST_CHARS:
            raise ValueError(f"a name of {len(self.name)} characters")


class NodeList:
    """What is kept in the file at `path`. Whoever changes it holds the lock of the mesh's folder meanwhile."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> dict[NodeId, PairedNode]:
        """Return all nodes. Raises AuthenticationError for a damaged file."""
        data = read_private(self._path, _MOST_BYTES)
        if data is None:
            return {}
        try:
            return {node.node: node for node in map(_parse, _unpack(data))}
        except (UnpackException, ValueError, TypeError) as error:
            raise AuthenticationError(
                f"{self._path} is damaged. Delete it; the nodes stay paired, and are listed when seen."
            ) from error

    def save(self, nodes: Mapping[NodeId, PairedNode]) -> None:
        """Remember `nodes`. Raises AuthenticationError where they are too many."""
        if len(nodes) > MOST_NODES:
            raise AuthenticationError(f"{MOST_NODES} nodes are paired. Remove some: `layermesh nodes rm NAME`.")
        write_private(self._path, cast("bytes", packb([asdict(node) for node in nodes.values()])))


def _unpack(data: bytes) -> list[Any]:
    value = unpackb(data, max_array_len=MOST_NODES, max_map_len=16, max_ext_len=0)
    if not isinstance(value, list):
        raise TypeError("no list")
    return value


def _parse(item: Any) -> PairedNode:
    node = PairedNode(**item)
    times = (node.paired, node.ends) if node.seen is None else (node.paired, node.ends, node.seen)
    if not all(isinstance(text, str) for text in (node.name, node.address)) or not isinstance(node.key_hash, bytes):
        raise TypeError("no node")
    if not all(isinstance(time, float) for time in times):
        raise TypeError("no time")
    return node
