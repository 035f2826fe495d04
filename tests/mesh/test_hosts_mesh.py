"""The real commands on hosts of their own, which share nothing but a network."""

import json
import signal
import subprocess
import sys

import pytest
import torch

from layermesh import LayerMesh
from layermesh.shared.errors import LayermeshError
from layermesh.shared.library import DEFAULT_MODEL, resolve
from layermesh.shared.security.mesh_home import MeshHome
from tests.mesh.hosts import requires_namespaces
from tests.mesh.pairing import pair_store
from tests.mesh.waiting import wait_until

pytestmark = requires_namespaces

NUM_WORKERS = 3
PROMPT = "What is the capital of France?"
LAYERMESH = (sys.executable, "-m", "layermesh")
LOOK = """
import json, time
from layermesh.coordinator.registry import Registry
began = time.monotonic()
with Registry() as registry:
    while len(workers := registry.survey()) < 3 and time.monotonic() - began < 10:
        pass
    seconds = time.monotonic() - began
print(json.dumps({"seconds": seconds, "workers": {one.name: one.address for one in workers}}))
"""


@pytest.fixture(scope="module")
def model():
    """SmolLM2, if its files are here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LAYERMESH_HOME", raising=False)  # the user's own
        try:
            return resolve(DEFAULT_MODEL, offline=True).path
        except LayermeshError as error:
            pytest.skip(f"the default model is not here: {error}")


class Mesh:
    """Paired workers on hosts of a network, each with a home of its own, and a coordinator."""

    def __init__(self, network, folder):
        self.network, self.folder = network, folder
        self.workers = {}

    def environ(self, name):
        home = self.folder / name
        home.mkdir(exist_ok=True)
        return {"LAYERMESH_HOME": str(home), "OMP_NUM_THREADS": "1", "LAYERMESH_ALONE": ""}

    def start(self, number):
        host = self.network.hosts[number]
        name = f"laptop-{number}"
        pair_store(MeshHome(self.folder / "desk" / "mesh"), self.folder / name / "store", name)
        command = [*LAYERMESH, "worker", "--name", name, "--host-memory", "1GB", "--quiet"]
        with (self.folder / f"{name}.log").open("w") as said:
            self.workers[name] = host.popen(command, env=self.environ(name), stdout=said, stderr=said)

    def stop(self, name):
        worker = self.workers.pop(name)
        worker.send_signal(signal.SIGINT)
        return worker.wait(20)

    def run(self, *arguments, **environ):
        """What the coordinator's command writes, as one object."""
        process = self.network.coordinator.popen(
            [*LAYERMESH, *arguments, "--json"],
            env=self.environ("desk") | environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        out, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors
        return json.loads(out)

    def status(self):
        return {worker["name"]: worker for worker in self.run("status")["workers"]}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    from tests.mesh.hosts import network

    with network(NUM_WORKERS) as hosts:
        mesh = Mesh(hosts, tmp_path_factory.mktemp("hosts"))
        for number in range(NUM_WORKERS):
            mesh.start(number)
        yield mesh


def generate(mesh, model, *arguments):
    return mesh.run(
        "generate", PROMPT, "-m", str(model), "-n", "8", "--temperature", "0", "--ignore-eos", "--quiet", *arguments
    )


def test_workers_are_found_with_no_configuration(mesh):
    def is_up():
        return all("Ctrl-C ends it" in (mesh.folder / f"laptop-{number}.log").read_text() for number in range(NUM_WORKERS))

    wait_until(is_up, 180)
    found = json.loads(mesh.network.coordinator.run([sys.executable, "-c", LOOK], env=mesh.environ("desk")))
    assert found["seconds"] < 5
    expected = {f"laptop-{number}": host.address for number, host in enumerate(mesh.network.hosts)}
    assert {name: address.rpartition(":")[0] for name, address in found["workers"].items()} == expected


@pytest.fixture(scope="module")
def alone(model):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with LayerMesh(str(model), device="cpu", alone=True) as mesh:
        yield mesh.generate(PROMPT, max_new_tokens=8, temperature=0, ignore_eos=True)
    torch.set_num_threads(before)


def test_the_answer_is_that_of_one_machine(mesh, model, alone):
    together = generate(mesh, model, "--spread")
    assert together["token_ids"] == alone.token_ids
    assert together["text"] == alone.text
    assert [stage["worker"] for stage in together["plan"]["stages"]] == [*sorted(mesh.workers), "local"]
    assert [hop["worker"] for hop in together["timings"]["hops"]] == sorted(mesh.workers)
    for worker in mesh.status().values():
        assert worker["problem"] is None
        assert worker["profile"]["disk_rate"] > 0
        assert [stage["num_sessions"] for stage in worker["running"]] == [0]


def test_a_worker_that_went_away_is_done_without(mesh, model, alone):
    assert mesh.stop("laptop-1") in (0, 130)
    answer = generate(mesh, model, "--spread")
    assert answer["token_ids"] == alone.token_ids
    assert [stage["worker"] for stage in answer["plan"]["stages"]] == ["laptop-0", "laptop-2", "local"]
