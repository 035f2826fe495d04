"""Where a machine can be reached, as people write it: HOST:PORT."""

import ipaddress
import re
from typing import Final

from layermesh.shared.errors import UsageError

DEFAULT_PORT: Final = 50700
_SCOPE: Final = re.compile(r"[\w.-]{1,32}", re.ASCII)
_LABEL: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_NAME_CHARS: Final = 253
_PORT: Final = re.compile(r"[0-9]{1,5}")


def format_address(host: str, port: int) -> str:
    """Return "HOST:PORT", with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_address(text: str, default_port: int = DEFAULT_PORT) -> tuple[str, int]:
    """Return host and port of "HOST", "HOST:PORT", "[IPV6]:PORT" or a bare IPv6 address, whose scope ("%eth0") stays.

    Raises UsageError for anything else.
    """
    stripped = text.strip()
    if stripped.startswith("["):
        host, closed, rest = stripped[1:].partition("]")
        if not closed or ":" not in host or (rest and not rest.startswith(":")):
            raise _nonsense(text)
        separator, port = rest[:1], rest[1:]
    elif stripped.count(":") > 1:
        host, separator, port = stripped, "", ""
    else:
        host, separator, port = stripped.partition(":")
    if not (is_ip_address(host) if ":" in host else is_ip_address(host) or _is_name(host)):
        raise _nonsense(text)
    return host, _parse_port(port, text) if separator else default_port


def pin(address: str, node: str) -> str:
    """Return "NODE@HOST:PORT", which leads to that node of the mesh and to nobody else who may have the address by now."""
    return f"{node}@{address}"


def split_pin(address: str) -> tuple[str | None, str]:
    """Return the node and the "HOST:PORT" of an address; None where it is not pinned to one."""
    node, separator, rest = address.rpartition("@")
    return (node, rest) if separator else (None, address)


def is_ip_address(text: str) -> bool:
    """Tell whether `text` is an IPv4 address, or an IPv6 address with or without a scope."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    scope = address.scope_id if isinstance(address, ipaddress.IPv6Address) else None
    return scope is None or _SCOPE.fullmatch(scope) is not None


def _is_name(host: str) -> bool:
    """Whether it can be a host's name; numbers with dots between that are no address are a slip of the hand."""
    labels = host.removesuffix(".").split(".")
    return len(host) <= _NAME_CHARS and all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdecimal()


def _parse_port(port: str, text: str) -> int:
    if not _PORT.fullmatch(port) or not 0 < int(port) < 1 << 16:
        raise _nonsense(text)
    return int(port)


def _nonsense(text: str) -> UsageError:
    return UsageError(
        f"{text!r} is no address of a worker. Write HOST or HOST:PORT, like 192.168.1.7:{DEFAULT_PORT}, den-pc.local or "
        f"[fe80::1%eth0]:{DEFAULT_PORT}."
    )


def is_loopback(address: str) -> bool:
    """Whether "HOST:PORT" leads to the machine that says it."""
    host, _ = parse_address(address)
    return host == "localhost" or (is_ip_address(host) and ipaddress.ip_address(host).is_loopback)


def is_unspecified(host: str | None) -> bool:
    """Return whether `host`, to listen at, stands for all addresses of this machine, as None and "" do."""
    if not host:
        return True
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:  # a name
        return False
