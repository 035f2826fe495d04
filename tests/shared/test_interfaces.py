import socket
from dataclasses import dataclass

import pytest

from layermesh.shared.interfaces import addresses_of, choose_interfaces, local_interfaces


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
