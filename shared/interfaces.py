"""The networks that this machine is on, and its addresses there."""

import ipaddress
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Protocol

import psutil

from layermesh.shared.interface_kinds import Kind, kind_of, read_traits
from layermesh.shared.routes import default_routes

_NO_FLAGS: Final = ""  # of systems that do not tell them


class _Address(Protocol):
    @property
    def family(self) -> socket.AddressFamily: ...

    @property
    def address(self) -> str: ...


class _State(Protocol):
    @property
    def isup(self) -> bool: ...

    @property
    def flags(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Interface:
    """A network card, or what looks like one, with its addresses: IPv4 first, then IPv6, those of the link alone last.

    The latter carry the interface's name: "fe80::1%eth0".
    """

    name: str
    index: int
    addresses: tuple[str, ...]
    kind: Kind = Kind.CARD

    @property
    def is_loopback(self) -> bool:
        """Whether it leads to this machine alone."""
        return any(ipaddress.ip_address(address).is_loopback for address in self.addresses)


def local_interfaces() -> tuple[Interface, ...]:
    """Return the interfaces that are up and carry multicast; the loopback alone where there are no others."""
    try:
        indices = {name: index for index, name in socket.if_nameindex()}
        return choose_interfaces(psutil.net_if_addrs(), psutil.net_if_stats(), indices)
    except OSError:  # one that went away meanwhile
        return ()


def choose_interfaces(
    addresses: Mapping[str, Iterable[_Address]], states: Mapping[str, _State], indices: Mapping[str, int]
) -> tuple[Interface, ...]:
    """Return what `local_interfaces` returns, from what the system says of each interface by name."""
    usable = []
    for name in sorted(addresses.keys() & states.keys() & indices.keys()):
        interface = Interface(name, indices[name], _addresses(name, addresses[name]))
        if interface.addresses and _carries(states[name], is_loopback=interface.is_loopback):
            usable.append(interface)
    return tuple(each for each in usable if not each.is_loopback) or tuple(usable)


def machine_addresses() -> tuple[str, ...]:
    """Return all addresses of this machine, those first at which others are likely to reach it; see `order_addresses`."""
    try:
        indices = {name: index for index, name in socket.if_nameindex()}
        addresses, states = psutil.net_if_addrs(), psutil.net_if_stats()
    except OSError:  # one that went away meanwhile
        return ()
    return order_addresses(up_interfaces(addresses, states, indices), default_routes())


def up_interfaces(
    addresses: Mapping[str, Iterable[_Address]], states: Mapping[str, _State], indices: Mapping[str, int]
) -> tuple[Interface, ...]:
    """Return the interfaces that are up, whether or not they carry multicast, and what they are."""
    found = []
    for name in sorted(addresses.keys() & states.keys() & indices.keys()):
        every = tuple(addresses[name])
        interface = Interface(name, indices[name], _addresses(name, every))
        if interface.addresses and states[name].isup:
            hardware = next((each.address for each in every if each.family == psutil.AF_LINK), "")
            traits = read_traits(name, indices[name], hardware)
            is_pointtopoint = "pointopoint" in states[name].flags.split(",")
            kind = Kind.LOOPBACK if interface.is_loopback else kind_of(name, is_pointtopoint=is_pointtopoint, traits=traits)
            found.append(replace(interface, kind=kind))
    return tuple(found)


def order_addresses(interfaces: Iterable[Interface], routes: Mapping[str, int]) -> tuple[str, ...]:
    """Return the addresses of `interfaces`: the best first, those of the loopback only where there are no others.

    First comes where a default route leads out (`routes`, by name, with its metric), unless that is a tunnel, then cards, and
    bridges and tunnels behind them. Addresses that hold on a link alone come last.
    """

    def rank(interface: Interface) -> tuple[bool, int, int, str]:
        leads_out = interface.name in routes and interface.kind is not Kind.TUNNEL
        return not leads_out, interface.kind, routes.get(interface.name, 0), interface.name

    ordered = sorted(interfaces, key=rank)
    usable = [each for each in ordered if each.kind is not Kind.LOOPBACK] or ordered
    every = dict.fromkeys(address for interface in usable for address in interface.addresses)
    return tuple(sorted(every, key=lambda address: "%" in address))


def addresses_of(interfaces: Iterable[Interface]) -> tuple[str, ...]:
    """Return the addresses of all `interfaces`, those that hold on a link alone last."""
    every = [address for interface in interfaces for address in interface.addresses]
    return tuple(sorted(dict.fromkeys(every), key=_rank))


def _carries(state: _State, *, is_loopback: bool) -> bool:
    flags = state.flags.split(",") if state.flags != _NO_FLAGS else ["multicast"]
    return state.isup and (is_loopback or "multicast" in flags)


def _addresses(name: str, addresses: Iterable[_Address]) -> tuple[str, ...]:
    found = []
    for each in addresses:
        if each.family in (socket.AF_INET, socket.AF_INET6):
            plain = each.address.partition("%")[0]
            on_link = each.family == socket.AF_INET6 and ipaddress.ip_address(plain).is_link_local
            found.append(f"{plain}%{name}" if on_link else plain)
    return tuple(sorted(found, key=_rank))


def _rank(address: str) -> int:
    return 2 if "%" in address else 1 if ":" in address else 0
