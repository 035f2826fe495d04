"""A worker as users start it, in a process of its own, and what it takes of the machine."""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests.mesh.waiting import wait_until

POOL = "event_engine"
ROOT = Path(__file__).parent.parent.parent
WHERE = re.compile(r"worker \S+ at (\S+:\d+):")


@dataclass(frozen=True)
class Taken:
    """Of the machine: resident bytes, descriptors, and threads but for those of gRPC's pool, which follow the load."""

    rss_bytes: int
    num_fds: int
    num_threads: int


class WorkerProcess:
    """`layermesh worker` on the loopback interface while it is entered; `said` is what it wrote."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._folder = folder
        self._options = options
        self._log = folder / "worker.log"
        self.address = ""

    def __enter__(self) -> Self:
        command = [
            *(sys.executable, "-W", "error", "-m", "layermesh", "worker", "--host", "127.0.0.1", "--port", "0", "--quiet"),
            *("--no-discovery", "--name", "w0", "--host-memory", "1GB", "--store", str(self._folder / "store")),
            *self._options,
        ]
        environment = os.environ | {"LAYERMESH_HOME": str(self._folder), "OMP_NUM_THREADS": "1"}
        with self._log.open("w") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            wait_until(lambda: WHERE.search(self.said) is not None or self._process.poll() is not None, 60)
            found = WHERE.search(self.said)
            if found is None:
                raise RuntimeError(self.said)
            self.address = found[1]
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self.exit_code = self._process.wait(20)
        finally:
            self._process.kill()
            self._process.wait()

    @property
    def said(self) -> str:
        return self._log.read_text()

    @property
    def is_up(self) -> bool:
        return self._process.poll() is None

    def taken(self) -> Taken:
        process = psutil.Process(self._process.pid)
        return Taken(process.memory_info().rss, process.num_fds(), sum(name != POOL for name in self._thread_names()))

    def _thread_names(self) -> list[str]:
        names = []
        for thread in Path(f"/proc/{self._process.pid}/task").iterdir():
            with suppress(FileNotFoundError):
                names.append((thread / "comm").read_text().strip())
        return names
