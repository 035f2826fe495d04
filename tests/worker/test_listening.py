import asyncio
import socket

import grpc.aio
import pytest

from layermesh.shared.errors import AuthenticationError, UsageError
from layermesh.worker.guard import FOR_WORKERS, allows
from layermesh.worker.listening import check_host, listen


def reached(host, port):
    try:
        with socket.create_connection((host, port), timeout=5):
            return True
    except OSError:
        return False


def own_address():
    """An address of this machine that is not the loopback's, if it has one; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine is on no network")
        return probe.getsockname()[0]


def test_before_it_is_paired_a_worker_listens_within_its_machine():
    async def run():
        server = grpc.aio.server()
        port = listen(server, None, 0, lambda: None)
        await server.start()
        try:
            return [await asyncio.to_thread(reached, host, port) for host in ("127.0.0.1", own_address())]
        finally:
            await server.stop(0)

    assert asyncio.run(run()) == [True, False]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "den-pc.local", "fe80::1%eth0"])
def test_it_listens_for_nobody_else_whatever_it_is_told(host):
    with pytest.raises(AuthenticationError, match="is not paired, and would listen at") as refused:
        check_host(host, is_paired=False)
    assert refused.value.exit_code == 5
    check_host(host, is_paired=True)


@pytest.mark.parametrize("host", [None, "127.0.0.1", "::1", "localhost", "127.3.2.1"])
def test_within_its_machine_it_may_choose(host):
    check_host(host, is_paired=False)


def test_a_port_that_is_taken_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        async def run():
            listen(grpc.aio.server(), None, port, lambda: None)

        with pytest.raises(UsageError, match=f"cannot listen at 127.0.0.1:{port}: another program uses it"):
            asyncio.run(run())


@pytest.mark.parametrize("method", sorted(FOR_WORKERS))
def test_workers_may_ask_each_other_what_they_need(method):
    assert allows(method, "worker")
    assert allows(method, "coordinator")


@pytest.mark.parametrize(
    "method",
    ["WorkerService/Prepare", "WorkerService/Reserve", "WorkerService/Release", "MembershipService/Remove", "Whatever/Comes"],
)
def test_the_rest_is_the_coordinators(method):
    assert not allows(f"/layermesh.v1.{method}", "worker")
    assert allows(f"/layermesh.v1.{method}", "coordinator")
