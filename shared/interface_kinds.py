"""What an interface is: a network card, one end of a virtual cable, a bridge within this machine, or a tunnel."""

import re
from enum import IntEnum
from pathlib import Path
from typing import Final

_SYSTEM: Final = Path("/sys/class/net")
_BRIDGES: Final = re.compile(r"(docker|br-|virbr|lxdbr|lxcbr|cni|podman|vmnet|vboxnet|bridge)\w*")
_TUNNELS: Final = re.compile(
    r"(wg|tun|utun|tap|ppp|ipsec|tailscale|zt|nordlynx|gre|sit|ip6tnl|vti|gif|stf|flannel|vxlan|cali)\w*"
)
_CABLES: Final = re.compile(r"veth\w*")
_ETHERNET: Final = "1"  # ARPHRD_ETHER


class Kind(IntEnum):
    """In the order in which others are likely to reach this machine there."""

    CARD = 0
    CABLE = 1
    BRIDGE = 2
    TUNNEL = 3
    LOOPBACK = 4


def kind_of(name: str, *, is_pointtopoint: bool = False, traits: frozenset[str] = frozenset()) -> Kind:
    """Return what an interface is, by what the system says of it (`read_traits`) or else by its name."""
    if "bridge" in traits:
        return Kind.BRIDGE
    if "device" in traits and not (is_pointtopoint or "tun_flags" in traits):  # InfiniBand and modems too
        return Kind.CARD
    if is_pointtopoint or traits & {"tun_flags", "not ethernet"} or _TUNNELS.fullmatch(name):
        return Kind.TUNNEL
    if _BRIDGES.fullmatch(name):
        return Kind.BRIDGE
    return Kind.CABLE if _CABLES.fullmatch(name) else Kind.CARD


def read_traits(name: str, index: int, hardware: str, system: Path = _SYSTEM) -> frozenset[str]:
    """Return what sysfs says of an interface; nothing where it is not that interface, as after a change of namespaces.

    `hardware` is its hardware address, such as "02:fc:00:00:00:01".
    """
    folder = system / name
    try:
        if (folder / "ifindex").read_text().strip() != str(index):
            return frozenset()
        if hardware and (folder / "address").read_text().strip().lower() != hardware.lower():
            return frozenset()
        ethernet = (folder / "type").read_text().strip() == _ETHERNET
        found = {trait for trait in ("bridge", "tun_flags", "device") if (folder / trait).exists()}
        return frozenset(found if ethernet else found | {"not ethernet"})
    except OSError:
        return frozenset()
