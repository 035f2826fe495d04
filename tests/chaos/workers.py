"""Workers that can be killed, frozen and started again where they were."""

import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from layermesh.protos import mesh_pb2 as pb
from layermesh.protos.mesh_pb2_grpc import WorkerServiceStub
from layermesh.shared.protocol import PROTOCOL_VERSION
from tests.chaos.processes import Command

UP = "Ctrl-C ends it"


class Worker:
    """A `layermesh worker` at an address of its own, whatever process it is at the moment."""

    def __init__(self, folder: Path, number: int) -> None:
        self.name = f"w{number}"
        self.port = free_port()
        self._folder = folder / self.name
        self._command: Command | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def command(self) -> Command:
        assert self._command is not None, f"{self.name} was never started"
        return self._command

    @property
    def is_running(self) -> bool:
        return self._command is not None and self._command.is_running

    def begin(self, fault: str = "", preloaded: Path | None = None, **environ: str) -> None:
        """Start it, to be waited for by `wait`."""
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--no-discovery", "--store", str(self._store)]
        own = {"LAYERMESH_HOME": str(self._folder / "home"), "LAYERMESH_FAULT": fault, "OMP_NUM_THREADS": "1"}
        options = ["--name", self.name, "--host-memory", "400MB", "--quiet"]
        self._command = Command(["worker", *where, *options], self._folder, "worker", own | environ, preloaded=preloaded)

    def wait(self) -> None:
        """Return once it serves."""
        self.command.wait_for(UP)

    def start(self, fault: str = "") -> None:
        self.begin(fault)
        self.wait()

    def kill(self) -> None:
        """kill -9."""
        self.command.kill()

    def end(self) -> None:
        """Have it gone, whatever state it was in."""
        if self._command is not None:
            self._command.kill()
            assert self._command.wait(20) is not None

    def forget(self) -> None:
        """Empty its store, once it has ended."""
        shutil.rmtree(self._store, ignore_errors=True)

    def freeze(self) -> None:
        self.command.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.command.send(signal.SIGCONT)

    def describe(self) -> pb.DescribeResponse:
        """What it says of itself."""
        import grpc  # after layermesh, which tells it how much to say

        with grpc.insecure_channel(self.address) as channel:
            return WorkerServiceStub(channel).Describe(pb.DescribeRequest(version=PROTOCOL_VERSION), timeout=5)

    def num_sessions(self) -> int:
        return sum(span.num_sessions for span in self.describe().running)

    def resident_bytes(self) -> int:
        """What its process has in memory."""
        num_bytes: int = psutil.Process(self.command.pid).memory_info().rss
        return num_bytes

    def num_routes(self) -> int:
        return sum(span.num_routes for span in self.describe().running)

    @property
    def _store(self) -> Path:
        return self._folder / "store"


@contextmanager
def workers(folder: Path, num_workers: int) -> Iterator[list[Worker]]:
    """So many workers, started at the same time and ended for good."""
    made = [Worker(folder, number) for number in range(num_workers)]
    try:
        for worker in made:
            worker.begin()
        for worker in made:
            worker.wait()
        yield made
    finally:
        for worker in made:
            worker.end()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
