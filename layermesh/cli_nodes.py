"""`layermesh nodes`: who belongs to the mesh, and who does not any more."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from layermesh.coordinator.registry import Registry
from layermesh.shared.addresses import parse_address
from layermesh.shared.errors import UsageError
from layermesh.shared.security.mesh_home import MeshHome
from layermesh.shared.security.node_list import PairedNode
from layermesh.terminal import harmless, note, print_json

_CHARS: Final = 30
_HEADINGS: Final = ("node", "id", "paired", "certificate until", "last seen", "at")


def print_nodes(*, as_json: bool) -> None:
    """Print who is paired, by name."""
    nodes = MeshHome().nodes()
    if as_json:
        print_json({"nodes": [_to_dict(node) for node in nodes]})
        return
    print(format_nodes(nodes))  # noqa: T201


def remove_node(name: str, *, as_json: bool) -> None:
    """Remove a node from the mesh, and tell all others that answer. Raises AuthenticationError for one that is not known."""
    mesh = MeshHome()
    removed = mesh.remove(name)  # commands that run on this machine see it by themselves
    others = mesh.nodes()
    told = _tell(mesh, others)
    names = sorted(node.name for node in others if node.node in told)
    later = sorted(node.name for node in others if node.node not in told)
    if as_json:
        print_json({"removed": _to_dict(removed), "told": names, "later": later})
        return
    note(f"{harmless(removed.name)} was removed from the mesh" + (f"; told {', '.join(map(harmless, names))}" if names else ""))
    if later:
        note(f"not reached, and told when they are next used: {', '.join(map(harmless, later))}")


def format_nodes(nodes: Sequence[PairedNode]) -> str:
    """Return the table of `nodes`."""
    if not nodes:
        return "no nodes. Invite one: `layermesh invite` here, and paste what it prints on the other machine."
    rows = [_HEADINGS, *map(_cells, nodes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _tell(mesh: MeshHome, others: Sequence[PairedNode]) -> set[str]:
    """Have all others know who was removed, first where they were seen last, which is quick; return the ids of who does."""
    addresses = [node.address for node in others if _is_address(node.address)]
    told = _told(Registry(addresses, discover=False, mesh=mesh))
    return told if len(told) == len(others) else told | _told(Registry(mesh=mesh))


def _told(registry: Registry) -> set[str]:
    with registry:
        answering = [info.worker_id for info in registry.survey() if info.problem is None]
        return {node for node in answering if registry.members.has_told(node)}


def _is_address(text: str) -> bool:
    try:
        parse_address(text)
    except UsageError:
        return False
    return True


def _cells(node: PairedNode) -> tuple[str, ...]:
    seen = "–" if node.seen is None else f"{_time(node.seen):%Y-%m-%d %H:%M}"
    name = harmless(node.name)[:_CHARS]
    return (name, node.node[:12], f"{_time(node.paired):%Y-%m-%d}", f"{_time(node.ends):%Y-%m-%d}", seen, node.address or "–")


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).astimezone()


def _to_dict(node: PairedNode) -> dict[str, Any]:
    return {
        "node": node.node,
        "name": node.name,
        "paired": _iso(node.paired),
        "certificate_until": _iso(node.ends),
        "last_seen": None if node.seen is None else _iso(node.seen),
        "address": node.address or None,
    }


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
