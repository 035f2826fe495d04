"""A mesh for a benchmark: hosts with a network each, real workers on them, and the command line on the coordinator."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from layermesh.shared.security.mesh_home import MeshHome
from tests.mesh.hosts import Host, Network, why_no_namespaces
from tests.mesh.pairing import pair_store
from tests.mesh.waiting import wait_until

PORT = 50700
START_SECONDS = 60.0
LONGEST_SECONDS = 900
LAST_WORDS = 2000
PROMPT_IDS = ",".join(str(5 + number) for number in range(12))


@dataclass(frozen=True, slots=True)
class HostSetting:
    """What one host has: all memory, page cache included, stays below `cap_bytes`, and layers get `host_memory` of it."""

    cap_bytes: int | None = None
    host_memory: str | None = None

    @property
    def options(self) -> list[str]:
        """Its options on a command line."""
        return [] if self.host_memory is None else ["--host-memory", self.host_memory]


class Mesh:
    """A coordinator and `workers`, each with a home folder of its own, while it is entered.

    Models are named by a path that only the coordinator's commands understand, as the hosts share a disk. Raises RuntimeError
    where a command fails, and where there can be no hosts.
    """

    def __init__(self, workers: Sequence[HostSetting], coordinator: HostSetting | None = None) -> None:
        self._workers = workers
        self._coordinator = coordinator or HostSetting()
        self._stack = ExitStack()
        self.folder: Path
        self.network: Network

    def __enter__(self) -> Self:
        if reason := why_no_namespaces():
            raise RuntimeError(f"this benchmark needs hosts: {reason}")
        with ExitStack() as stack:
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="layermesh-bench-")))
            self.network = stack.enter_context(Network(len(self._workers)))
            for host, setting in zip(self.network.hosts, self._workers, strict=True):
                self.start_worker(host, setting)  # one by one: each measures itself
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._stack.close()

    @property
    def addresses(self) -> list[str]:
        """Where the workers listen."""
        return [f"{host.address}:{PORT}" for host in self.network.hosts]

    def start_worker(self, host: Host, setting: HostSetting, *options: str) -> None:
        """Start a worker on `host` and return once it serves."""
        log = self._log(host)
        pair_store(MeshHome(self.folder / self.network.coordinator.name / "mesh"), self.folder / host.name / "store", host.name)
        command = ["-m", "layermesh", "worker", "--name", host.name, "--port", str(PORT), "--no-discovery", "--device", "cpu"]
        with log.open("w") as output:
            process = host.python(
                *command, *setting.options, *options,
                env=self.environ(host), memory_bytes=setting.cap_bytes, stdout=output, stderr=output,
            )  # fmt: skip
        wait_until(lambda: process.poll() is not None or " at " in log.read_text(), START_SECONDS)
        if process.poll() is not None:
            raise RuntimeError(f"the worker on {host.name} ended: {log.read_text()[-LAST_WORDS:]}")

    def _log(self, host: Host) -> Path:
        return self.folder / f"{host.name}.log"

    def _last_words(self) -> str:
        """What the workers said last."""
        logs = [self._log(host) for host in self.network.hosts]
        return "\n".join(f"{log.stem}: {log.read_text()[-LAST_WORDS:]}" for log in logs)

    def environ(self, host: Host) -> dict[str, str]:
        """What tells commands on `host` where their home is."""
        return {"LAYERMESH_HOME": str(self.folder / host.name)}

    def generate(self, model: Path, num_new: int, *options: str) -> dict[str, Any]:
        """Return the answer of `layermesh generate --json` on the coordinator, of `num_new` tokens."""
        chosen = ["--prompt-ids", PROMPT_IDS, "-n", str(num_new), "--ignore-eos", "--temperature", "0", "-q"]
        return self.ask("generate", model, *chosen, *options)

    def ask(self, command: str, model: Path, *options: str) -> dict[str, Any]:
        """Return what `layermesh COMMAND --json` prints on the coordinator, which is given all workers unless `--alone`."""
        arguments = ["layermesh", command, "--json", "--device", "cpu", "-m", f"./{model.name}", *self._coordinator.options]
        if "--alone" not in options:
            arguments += [word for address in self.addresses for word in ("--worker", address)] + ["--no-discovery"]
        return self.run_python(model.parent, "-m", *arguments, *options)

    def run_python(self, folder: Path, *arguments: str) -> dict[str, Any]:
        """Run this interpreter on the coordinator, in `folder`, and return the JSON that it prints."""
        host = self.network.coordinator
        process = host.popen(
            ["env", "-C", str(folder), sys.executable, *arguments],
            env=self.environ(host), memory_bytes=self._coordinator.cap_bytes, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        written, complaints = process.communicate(timeout=LONGEST_SECONDS)
        if process.returncode != 0:
            raise RuntimeError(
                f"{' '.join(arguments)} ended with {process.returncode}: {complaints[-LAST_WORDS:]}\n{self._last_words()}"
            )
        answer: dict[str, Any] = json.loads(written)
        return answer


def seconds_per_token(answer: Mapping[str, Any]) -> float:
    """Return how long each token took after the first."""
    return float(answer["timings"]["decode_seconds"]) / (len(answer["token_ids"]) - 1)
