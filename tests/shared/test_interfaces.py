import socket
from dataclasses import dataclass

import pytest

from layermesh.shared.interface_kinds import Kind, kind_of, read_traits
from layermesh.shared.interfaces import (
    Interface,
    addresses_of,
    choose_interfaces,
    local_interfaces,
    order_addresses,
    up_interfaces,
)
from layermesh.shared.routes import read_default_routes


@dataclass(frozen=True)
class Address:
    address: str

    @property
    def family(self) -> socket.AddressFamily:
        if "-" in self.address:
            return socket.AF_PACKET
        return socket.AF_INET6 if ":" in self.address else socket.AF_INET


@dataclass(frozen=True)
class State:
    isup: bool = True
    flags: str = "up,broadcast,running,multicast"


INDICES = {"lo": 1, "eth0": 2, "wlan0": 3, "tun0": 4}
ADDRESSES = {
    "lo": ["127.0.0.1", "::1"],
    "eth0": ["fe80::1%eth0", "2001:db8::1", "00-11-22", "10.0.0.1"],
    "wlan0": ["192.168.1.7", "fe80::2"],
    "tun0": ["10.8.0.1"],
}
LOOPBACK = State(flags="up,loopback,running")


def chosen(**states: State) -> list[str]:
    return [each.name for each in choose_interfaces(addresses(), states, INDICES)]


def addresses() -> dict[str, list[Address]]:
    return {name: [Address(each) for each in every] for name, every in ADDRESSES.items()}


@pytest.mark.parametrize(
    ("states", "names"),
    [
        ({"lo": LOOPBACK, "eth0": State(), "wlan0": State()}, ["eth0", "wlan0"]),
        ({"lo": LOOPBACK, "eth0": State(isup=False), "wlan0": State()}, ["wlan0"]),
        ({"lo": LOOPBACK, "eth0": State(isup=False)}, ["lo"]),
        ({"lo": LOOPBACK, "tun0": State(flags="up,pointopoint,running")}, ["lo"]),
        ({"lo": State(flags=""), "eth0": State(flags="")}, ["eth0"]),
        ({"gone": State()}, []),
    ],
    ids=["both", "one is down", "alone", "no multicast", "no flags", "none"],
)
def test_networks_that_carry_multicast_are_chosen(states: dict[str, State], names: list[str]) -> None:
    assert chosen(**states) == names


def test_addresses_come_in_order_and_with_their_link() -> None:
    interfaces = choose_interfaces(addresses(), {"eth0": State(), "wlan0": State()}, INDICES)
    assert interfaces[0].addresses == ("10.0.0.1", "2001:db8::1", "fe80::1%eth0")
    assert addresses_of(interfaces) == ("10.0.0.1", "192.168.1.7", "2001:db8::1", "fe80::1%eth0", "fe80::2%wlan0")


def test_this_machine_has_interfaces() -> None:
    assert all(each.index > 0 and each.addresses for each in local_interfaces())


CARD, CABLE, BRIDGE, TUNNEL, LOOPBACK_KIND = Kind.CARD, Kind.CABLE, Kind.BRIDGE, Kind.TUNNEL, Kind.LOOPBACK


@pytest.mark.parametrize(
    ("interfaces", "routes", "expected"),
    [
        ([("docker0", BRIDGE, "172.17.0.1"), ("eth0", CARD, "10.0.0.2")], {}, ["10.0.0.2", "172.17.0.1"]),
        ([("br0", BRIDGE, "10.0.0.2"), ("eth1", CARD, "192.168.9.1")], {"br0": 0}, ["10.0.0.2", "192.168.9.1"]),
        ([("eth0", CARD, "10.0.0.2"), ("wlan0", CARD, "10.1.0.2")], {"eth0": 600, "wlan0": 100}, ["10.1.0.2", "10.0.0.2"]),
        ([("tun0", TUNNEL, "10.8.0.2"), ("wlan0", CARD, "10.1.0.2")], {"tun0": 50}, ["10.1.0.2", "10.8.0.2"]),
        ([("lo", LOOPBACK_KIND, "127.0.0.1"), ("wg0", TUNNEL, "100.64.0.1")], {}, ["100.64.0.1"]),
        ([("lo", LOOPBACK_KIND, "127.0.0.1")], {}, ["127.0.0.1"]),
        ([("a", CARD, "fe80::1%a"), ("wg0", TUNNEL, "100.64.0.1")], {"a": 0}, ["100.64.0.1", "fe80::1%a"]),
        ([("eth0", CABLE, "10.0.0.2"), ("docker0", BRIDGE, "172.17.0.1")], {}, ["10.0.0.2", "172.17.0.1"]),
        ([(f"br-{n:02}", BRIDGE, f"172.18.{n}.1") for n in range(40)], {}, [f"172.18.{n}.1" for n in range(40)]),
        ([], {}, []),
    ],
    ids=[
        *("docker", "a bridge that leads out", "two cards", "a tunnel that leads out", "a VPN alone", "alone"),
        *("a link alone", "a container", "no cut", "none"),
    ],
)
def test_addresses_come_in_the_order_in_which_others_reach_them(interfaces, routes, expected):
    made = [Interface(name, number, (address,), kind) for number, (name, kind, address) in enumerate(interfaces, 1)]
    assert list(order_addresses(made, routes)) == expected
    assert list(order_addresses(reversed(made), routes)) == expected


def test_interfaces_without_multicast_are_among_those_that_are_up() -> None:
    states = {"lo": LOOPBACK, "eth0": State(), "wlan0": State(isup=False), "tun0": State(flags="up,pointopoint,running")}
    found = {each.name: each.kind for each in up_interfaces(addresses(), states, INDICES)}
    assert found == {"lo": LOOPBACK_KIND, "eth0": CARD, "tun0": TUNNEL}


@pytest.mark.parametrize(
    ("name", "traits", "kind"),
    [
        *((name, (), CARD) for name in ("eth0", "enp3s0", "wlp2s0", "en0", "bond0", "eth0.7", "wlan0")),
        *((name, (), BRIDGE) for name in ("docker0", "br-1f0a9b3c", "virbr0", "lxdbr0", "cni0", "bridge100", "vmnet8")),
        *((name, (), TUNNEL) for name in ("wg0", "tun0", "utun4", "tailscale0", "ppp0", "ztabcdef12", "tap0")),
        ("veth12ab", (), CABLE),
        ("lan", ("bridge",), BRIDGE),
        ("home", ("tun_flags",), TUNNEL),
        ("office", ("not ethernet",), TUNNEL),
        ("bridge-card", ("device",), CARD),
        ("ib0", ("device", "not ethernet"), CARD),
    ],
)
def test_kinds_are_told_by_the_system_or_by_name(name, traits, kind) -> None:
    assert kind_of(name, traits=frozenset(traits)) is kind


def test_what_sysfs_says_counts_for_the_interface_that_it_is_about(tmp_path) -> None:
    folder = tmp_path / "eth0"
    (folder / "device").mkdir(parents=True)
    for file, text in {"ifindex": "4", "address": "02:fc:00:00:00:01", "type": "1"}.items():
        (folder / file).write_text(f"{text}\n")
    assert read_traits("eth0", 4, "02:FC:00:00:00:01", tmp_path) == {"device"}
    assert read_traits("eth0", 5, "02:fc:00:00:00:01", tmp_path) == frozenset()  # of another namespace
    assert read_traits("eth0", 4, "02:fc:00:00:00:02", tmp_path) == frozenset()
    assert read_traits("eth1", 4, "", tmp_path) == frozenset()
    (folder / "type").write_text("65534\n")
    assert read_traits("eth0", 4, "", tmp_path) == {"device", "not ethernet"}


IPV4 = """Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
wlan0	00000000	010200C0	0003	0	0	600	00000000	0	0	0
eth0	00000000	010200C0	0003	0	0	100	00000000	0	0	0
eth0	000200C0	00000000	0001	0	0	0	00FFFFFF	0	0	0
tun0	00000000	00000000	0001	0	0	0	00000080	0	0	0
lo	00000000	00000000	0200	0	0	0	00000000	0	0	0
"""
ZERO = "0" * 32
IPV6 = f"""{ZERO} 00 {ZERO} 00 fe800000000000000000000000000001 00000040 00000001 00000000 00450003     eth0
{ZERO} 00 {ZERO} 00 {ZERO} ffffffff 00000001 00000000 00200200       lo
fd000000000000000000000000000000 40 {ZERO} 00 {ZERO} 00000100 00000001 00000000 00000001     wg0
{ZERO} 00 {ZERO} 00 {ZERO} 00000400 00000001 00000000 00000003     usb0
"""


def test_default_routes_are_read_with_their_metrics() -> None:
    assert read_default_routes(IPV4, IPV6) == {"wlan0": 600, "eth0": 64, "usb0": 1024}
    assert read_default_routes("", "") == {}
    assert read_default_routes("nonsense\n1 2\n", "x y\n") == {}
