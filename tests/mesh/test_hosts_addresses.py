"""Which address a machine shows to others, on machines with bridges and tunnels."""

import sys

import pytest

from tests.mesh.hosts import Network, requires_namespaces

pytestmark = requires_namespaces

SHOW = "from layermesh.shared.interfaces import local_interfaces, machine_addresses; "
BRIDGE, VPN = "172.17.0.1", "100.64.0.1"


def shown(host, what="*machine_addresses()"):
    return host.run([sys.executable, "-c", f"{SHOW}print({what})"]).split()


@pytest.fixture
def host():
    """A machine on a LAN with the bridge of containers and a VPN that carries no multicast."""
    with Network(1) as network:
        (host,) = network.hosts
        for command in (
            "ip link add docker0 type bridge",
            f"ip addr add {BRIDGE}/16 dev docker0",
            "ip link set docker0 up",
            "ip link add wg0 type veth peer name far",
            f"ip addr add {VPN}/10 dev wg0",
            "ip link set wg0 multicast off up",
            "ip link set far up",
        ):
            host.run(command.split())
        yield host


def test_the_lan_comes_before_bridges_and_vpns_and_links_last(host):
    found = shown(host)
    assert [address for address in found if "%" not in address] == [host.address, BRIDGE, VPN]
    assert all("%" in address for address in found[3:])
    assert "wg0" not in shown(host, "*(each.name for each in local_interfaces())")


def test_where_a_default_route_leads_out_comes_first(host):
    host.run(["ip", "route", "add", "default", "via", "172.17.0.2", "dev", "docker0"])
    assert shown(host)[:3] == [BRIDGE, host.address, VPN]


def test_a_vpn_alone_is_shown_and_not_the_loopback(host):
    for name in ("eth0", "docker0"):
        host.run(["ip", "link", "set", name, "down"])
    assert shown(host)[0] == VPN
    host.run(["ip", "link", "set", "wg0", "down"])
    host.run(["ip", "link", "set", "far", "down"])
    assert shown(host)[0] == "127.0.0.1"
