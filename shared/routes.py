"""Through which interfaces this machine reaches everything else: its default routes."""

from pathlib import Path
from typing import Final

_TABLES: Final = (Path("/proc/net/route"), Path("/proc/net/ipv6_route"))
_REJECT: Final = 0x0200  # RTF_REJECT: what is said of addresses that cannot be reached


def default_routes() -> dict[str, int]:
    """Return the interfaces that have a default route, and how far down each is; none where the system does not tell."""
    texts = []
    for path in _TABLES:
        try:
            texts.append(path.read_text())
        except OSError:
            texts.append("")
    return read_default_routes(*texts)


def read_default_routes(ipv4: str, ipv6: str = "") -> dict[str, int]:
    """Return the same from the texts of /proc/net/route and /proc/net/ipv6_route: the smallest metric of each interface."""
    found: dict[str, int] = {}
    for name, metric in (*_of_ipv4(ipv4), *_of_ipv6(ipv6)):
        found[name] = min(metric, found.get(name, metric))
    return found


def _of_ipv4(text: str) -> list[tuple[str, int]]:
    rows = [line.split() for line in text.splitlines()[1:]]
    return [
        (row[0], int(row[6]))
        for row in rows
        if len(row) >= 8 and row[1] == row[7] == "00000000" and not int(row[3], 16) & _REJECT
    ]


def _of_ipv6(text: str) -> list[tuple[str, int]]:
    rows = [line.split() for line in text.splitlines()]
    return [
        (row[9], int(row[5], 16))
        for row in rows
        if len(row) >= 10 and row[0] == "0" * 32 and row[1] == "00" and not int(row[8], 16) & _REJECT
    ]
