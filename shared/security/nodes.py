"""What a node of a mesh is called in its certificate, and which part it has."""

import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, NewType, cast, get_args

from cryptography import x509

NodeId = NewType("NodeId", str)
Role = Literal["coordinator", "worker"]
_NODE: Final = re.compile(r"[0-9a-f]{32}")
_DOMAIN: Final = ".node.layermesh"
_ROLE: Final = "urn:layermesh:role:"


@dataclass(frozen=True, slots=True)
class Member:
    """Who a certificate speaks of, and from when to when it holds."""

    node: NodeId
    role: Role
    begins: datetime
    ends: datetime


def is_node_id(text: str) -> bool:
    """Whether `text` is the id of a node: 32 digits."""
    return _NODE.fullmatch(text) is not None


def node_id(text: str) -> NodeId:
    """Return `text` as an id; raises ValueError where it is none."""
    if not is_node_id(text):
        raise ValueError(f"a node's id is 32 hexadecimal digits, not {text[:40]!r}")
    return NodeId(text)


def new_node_id() -> NodeId:
    """Return an id that nobody has."""
    return NodeId(uuid.uuid4().hex)


def host_name(node: NodeId) -> str:
    """Return what stands for the node where TLS wants a host's name; its address may change."""
    return f"{node}{_DOMAIN}"


def names_of(node: NodeId, role: Role) -> x509.SubjectAlternativeName:
    """Return the names that go into a certificate."""
    return x509.SubjectAlternativeName([x509.DNSName(host_name(node)), x509.UniformResourceIdentifier(f"{_ROLE}{role}")])


def read_names(names: Iterable[str]) -> tuple[NodeId, Role]:
    """Return who a certificate with these alternative names speaks of. Raises ValueError where they name nobody, or several."""
    given = list(names)
    nodes = [name.removesuffix(_DOMAIN) for name in given if name.endswith(_DOMAIN)]
    roles = [name.removeprefix(_ROLE) for name in given if name.startswith(_ROLE)]
    if len(nodes) != 1 or len(roles) != 1 or roles[0] not in get_args(Role):
        raise ValueError("a certificate that names no node of a mesh")
    return node_id(nodes[0]), cast("Role", roles[0])


def read_member(certificate: x509.Certificate) -> Member:
    """Return who a certificate speaks of, whoever signed it. Raises ValueError where it speaks of no node."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension) as error:
        raise ValueError("a certificate without names") from error
    dns, uris = names.get_values_for_type(x509.DNSName), names.get_values_for_type(x509.UniformResourceIdentifier)
    node, role = read_names([*dns, *uris])
    return Member(node, role, certificate.not_valid_before_utc, certificate.not_valid_after_utc)
