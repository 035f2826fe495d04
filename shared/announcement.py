"""What a worker says of itself to everybody on its networks, and how that is read: a hint, never a proof."""

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from layermesh.shared.addresses import is_ip_address

SERVICE_TYPE: Final = "_layermesh._tcp.local."
MOST_ADDRESSES: Final = 64  # of a packet; a machine has a few, and one with many containers some for each
MOST_TEXT_BYTES: Final = 1 << 10
_WORKER_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,48}")
_MESH: Final = re.compile(r"[0-9a-f]{0,16}")
_NAME_CHARS: Final = 63
_NAME_BYTES: Final = 200
_NUMBER: Final = re.compile(rb"[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Announcement:
    """A worker, the `version` of the protocol it speaks, and where it may be reached: `addresses`, the best first.

    IPv6 addresses that hold on one link only carry its name here: "fe80::1%eth0". `mesh` tells the mesh it was paired with from
    others; it is empty where it was not, and then only its own machine reaches it. Raises ValueError for what no worker would
    say, whoever says it.
    """

    worker_id: str
    name: str
    version: int
    port: int
    addresses: tuple[str, ...] = ()
    mesh: str = ""

    def __post_init__(self) -> None:
        if not _WORKER_ID.fullmatch(self.worker_id):
            raise ValueError(f"a worker's id is up to 48 letters and digits, not {self.worker_id!r}")
        if not _is_name(self.name):
            raise ValueError(f"a worker's name is a short line of text, not {self.name!r}")
        if not 0 < self.version < 1 << 16 or not 0 < self.port < 1 << 16:
            raise ValueError(f"versions and ports run from 1 to 65535, not {self.version} and {self.port}")
        if not _MESH.fullmatch(self.mesh):
            raise ValueError(f"a mesh is known by a few hexadecimal digits, not by {self.mesh!r}")
        if len(self.addresses) > MOST_ADDRESSES or not all(map(is_reachable, self.addresses)):
            raise ValueError(f"a worker has a few IP addresses, not {self.addresses}")

    @property
    def instance(self) -> str:
        """The name of the service, which no other worker has, whatever it is called."""
        return f"{self.worker_id}.{SERVICE_TYPE}"

    @property
    def server(self) -> str:
        """The name under which its addresses are found."""
        return f"layermesh-{self.worker_id}.local."

    @property
    def properties(self) -> dict[bytes, bytes]:
        """What the TXT record carries."""
        numbers = {b"version": str(self.version).encode(), b"mesh": self.mesh.encode()}
        return {b"id": self.worker_id.encode(), b"name": self.name.encode(), **numbers}


def read_announcement(
    instance: str, properties: Mapping[bytes, bytes | None], port: int | None, addresses: Sequence[str]
) -> Announcement:
    """Return what a service called `instance` announces; addresses that lead nowhere are left out.

    Raises ValueError for values that no worker would announce, and for an instance that speaks for another.
    """
    if sum(len(key) + len(value or b"") + 2 for key, value in properties.items()) > MOST_TEXT_BYTES:
        raise ValueError(f"{instance!r} says more than {MOST_TEXT_BYTES} bytes")
    worker_id, name, version, mesh = (properties.get(key) or b"" for key in (b"id", b"name", b"version", b"mesh"))
    if instance != f"{worker_id.decode('ascii')}.{SERVICE_TYPE}":
        raise ValueError(f"{instance!r} speaks for {worker_id!r}")
    if not _NUMBER.fullmatch(version):
        raise ValueError(f"{instance!r} speaks version {version!r}")
    reachable = tuple(filter(is_reachable, addresses))[:MOST_ADDRESSES]
    return Announcement(worker_id.decode("ascii"), name.decode(), int(version), port or 0, reachable, mesh.decode("ascii"))


def is_reachable(text: str) -> bool:
    """Tell whether one machine can be connected to there, and on a link that is named where that matters."""
    if not is_ip_address(text):
        return False
    address = ipaddress.ip_address(text)
    if address.is_multicast or address.is_unspecified:
        return False
    return not address.is_reserved if address.version == 4 else not address.is_link_local or "%" in text


def _is_name(text: str) -> bool:
    fits = 0 < len(text) <= _NAME_CHARS and len(text.encode(errors="replace")) <= _NAME_BYTES
    return fits and text.isprintable() and text == text.strip()
