import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.peers.cgroups import find_controller
from tests.mesh.hosts import Network, requires_namespaces
from tests.mesh.waiting import wait_until

pytestmark = requires_namespaces

CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], 1), timeout=5)"
MIB = 1 << 20


def test_hosts_reach_each_other_until_a_cable_is_pulled() -> None:
    with Network(1) as network:
        (host,) = network.hosts

        def answers() -> bool:  # with a refusal, since nobody listens
            done = network.coordinator.python(
                "-c", CONNECT.replace("timeout=5", "timeout=0.5"), host.address, stderr=subprocess.PIPE
            )
            return "ConnectionRefusedError" in done.communicate(timeout=20)[1]

        assert answers()
        host.down()
        assert not answers()
        host.up()
        wait_until(answers)
        assert host.move() != network.coordinator.address
        assert answers()


def test_a_command_stays_within_its_memory() -> None:
    if find_controller() is None:
        pytest.skip("memory cannot be limited here")
    with Network(1) as network:
        (host,) = network.hosts
        take = "import sys; print(len(bytearray(int(sys.argv[1]) << 20)))"
        host.run([sys.executable, "-c", take, "30"], memory_bytes=100 * MIB)
        greedy = host.python("-c", take, "200", memory_bytes=100 * MIB)
        assert greedy.wait(20) == -9
        folders = [cap.folder for cap in host._caps]
        assert all(folder.is_dir() for folder in folders)
    assert not any(folder.exists() for folder in folders)


def test_nothing_is_left_of_a_network_whatever_happens() -> None:
    names: list[str] = []
    processes: list[subprocess.Popen[str]] = []

    def break_off() -> None:
        with Network(2) as network:
            names.extend([network.switch, *(host._namespace for host in (network.coordinator, *network.hosts))])
            processes.append(network.hosts[0].popen(["sh", "-c", "sleep 1000 & sleep 1000"]))
            assert all((Path("/run/netns") / name).exists() for name in names)
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        break_off()
    assert processes[0].returncode == -9
    assert not any((Path("/run/netns") / name).exists() for name in names)
