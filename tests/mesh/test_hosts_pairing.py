"""Machines that pair by one line to paste, and what somebody who listens on the link between them sees."""

import json
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from layermesh.shared.checkpoints import open_folder
from layermesh.shared.security.invitation import Invitation
from tests.mesh.hosts import requires_namespaces
from tests.mesh.waiting import wait_until

pytestmark = requires_namespaces

LAYERMESH = (sys.executable, "-m", "layermesh")
CAPTURE = Path(__file__).with_name("capture_script.py")
IDS = [40, 19, 33, 28, 45, 12, 37, 24, 41, 17, 29, 36]
START_SECONDS = 240
NEEDLE_BYTES = 48
PLAIN_SERVER = """
import sys
from concurrent.futures import ThreadPoolExecutor
import grpc
server = grpc.server(ThreadPoolExecutor(1))
server.add_insecure_port(sys.argv[1])
server.start()
print("up", flush=True)
sys.stdin.read()
"""

REFUSAL = """
import sys, time
from layermesh.coordinator.registry import Registry
from layermesh.shared.errors import AuthenticationError
with Registry(sys.argv[1:], discover=False) as registry:
    began = time.monotonic()
    try:
        registry.find()
    except AuthenticationError:
        print(time.monotonic() - began)
"""


class Mesh:
    """A coordinator and three hosts, of which two pair, one does not."""

    def __init__(self, network, folder, model):
        self.network, self.folder, self.model = network, folder, model
        self.commands, self.workers, self.invited = [], {}, None

    def environ(self, name):
        home = self.folder / name
        home.mkdir(exist_ok=True)
        return {"LAYERMESH_HOME": str(home), "OMP_NUM_THREADS": "1", "LAYERMESH_ALONE": "", "LAYERMESH_JOIN": ""}

    def log(self, name):
        return self.folder / f"{name}.log"

    def start(self, host, name, *options, **environ):
        command = [*LAYERMESH, "worker", "--name", name, "--host-memory", "1GB", "--device", "cpu", "--quiet", *options]
        with self.log(name).open("w") as said:
            self.workers[name] = host.popen(command, env=self.environ(name) | environ, stdout=said, stderr=said)

    def wait_for(self, *names):
        wait_until(lambda: all("Ctrl-C ends it" in self.log(name).read_text() for name in names), START_SECONDS)

    def run(self, *arguments, host=None, home="desk", code=0):
        """What a command says: an object if it ends well, else its errors. It finds the model in its own folder only."""
        process = (host or self.network.coordinator).popen(
            ["env", "-C", str(self.model.parent), *LAYERMESH, *arguments, "--json"],
            env=self.environ(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        out, errors = process.communicate(timeout=START_SECONDS)
        assert process.returncode == code, errors
        return json.loads(out) if code == 0 else errors

    def generate(self, *options, **where):
        ids = ",".join(map(str, IDS))
        return self.run(
            *("generate", "-m", f"./{self.model.name}", "--prompt-ids", ids, "-n", "6", "--ignore-eos", "--temperature", "0"),
            *("--device", "cpu", "--no-fast-path", "--quiet", *options),
            **where,
        )


@contextmanager
def captured(namespace, file):
    """Everything that passes the interfaces of a namespace meanwhile."""
    command = ["nsenter", f"--net=/run/netns/{namespace}", "--", sys.executable, str(CAPTURE), str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        yield file
        process.communicate("", timeout=20)


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    link = tmp_path_factory.mktemp("model") / "secret-model-name"
    link.symlink_to(tiny("llama"), target_is_directory=True)
    return link


@pytest.fixture(scope="module")
def mesh(tmp_path_factory, model):
    """Two workers that were invited, and one that was not; `link` has what passed between all of them meanwhile."""
    from tests.mesh.hosts import network

    folder = tmp_path_factory.mktemp("paired")
    with network(3) as hosts:
        mesh = Mesh(hosts, folder, model)
        mesh.link = folder / "link.pcap"
        with captured(hosts.switch, mesh.link):
            mesh.invite = hosts.coordinator.popen(
                [*LAYERMESH, "invite", "--count", "2"],
                env=mesh.environ("desk"), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            mesh.commands = [mesh.invite.stdout.readline().split() for _ in range(2)]
            mesh.start(hosts.hosts[0], "attic", *mesh.commands[0][2:])
            (folder / "invitation").write_text(f"{mesh.commands[1][3]}\n")
            mesh.start(hosts.hosts[1], "kitchen", "--join-file", str(folder / "invitation"))
            mesh.start(hosts.hosts[2], "stranger")
            mesh.invited = mesh.invite.communicate(timeout=START_SECONDS)[1]
            mesh.wait_for("attic", "kitchen", "stranger")
            mesh.answer = mesh.generate("--spread")
        yield mesh


def test_who_was_invited_is_in_and_the_invitation_ends(mesh):
    assert mesh.invite.returncode == 0
    assert {line.split()[0] for line in mesh.invited.splitlines() if "has joined" in line} == {"attic", "kitchen"}
    nodes = mesh.run("nodes")["nodes"]
    assert [node["name"] for node in nodes] == ["attic", "kitchen"]
    assert [(node["address"] or "").rpartition(":")[0] for node in nodes] == [host.address for host in mesh.network.hosts[:2]]


def test_the_answer_of_paired_machines_is_that_of_one(mesh):
    assert [stage["worker"] for stage in mesh.answer["plan"]["stages"]] == ["attic", "kitchen", "local"]
    assert mesh.answer["token_ids"] == mesh.generate("--alone")["token_ids"]


def test_a_machine_that_is_not_paired_is_listed_with_what_to_do(mesh):
    workers = {worker["name"]: worker for worker in mesh.run("status")["workers"]}
    assert workers["stranger"]["problem"] == (
        "stranger is here but not paired: on this machine say `layermesh invite`, and there paste what it prints."
    )
    assert workers["attic"]["problem"] is workers["kitchen"]["problem"] is None


def test_what_is_not_encrypted_is_not_spoken_to(mesh):
    host = mesh.network.hosts[2]
    server = host.python("-c", PLAIN_SERVER, f"{host.address}:50999", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdout.readline() == "up\n"
    said = mesh.generate("--worker", f"{host.address}:50999", code=5)
    assert "is not paired: nothing is encrypted there" in said
    refusal = mesh.network.coordinator.run([sys.executable, "-c", REFUSAL, f"{host.address}:50999"], env=mesh.environ("desk"))
    assert float(refusal.split()[0]) < 1


def test_a_machine_that_is_not_paired_listens_within_itself_only(mesh):
    for port in (50700, 50701):
        tried = mesh.network.coordinator.python(
            "-c", "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5)",
            mesh.network.hosts[2].address, str(port), stderr=subprocess.PIPE,
        )  # fmt: skip
        assert "ConnectionRefusedError" in tried.communicate(timeout=20)[1]


def test_another_machine_of_the_network_is_refused(mesh):
    host = mesh.network.hosts[2]
    address = f"{mesh.network.hosts[0].address}:50700"
    said = mesh.generate("--worker", address, host=host, home="somebody", code=5)
    assert "belongs to a mesh, and this machine to none" in said


def test_an_invitation_works_once(mesh):
    mesh.start(mesh.network.hosts[2], "late", *mesh.commands[0][2:], "--coordinator", mesh.network.coordinator.address)
    assert mesh.workers["late"].wait(START_SECONDS) == 5
    assert "ends: say it again" in mesh.log("late").read_text()


def test_the_secret_is_in_no_file_and_no_log(mesh):
    token = mesh.commands[0][3]
    secret = Invitation.parse(token).secret
    texts = [path.read_bytes() for path in mesh.folder.rglob("*") if path.is_file() and path.name != "invitation"]
    assert len(texts) > 10
    assert not any(needle in text for text in texts for needle in (secret, secret.hex().encode(), token[-26:].encode()))


def varints(ids):
    assert max(ids) < 128
    return bytes(ids)


def hidden_states(model, answer):
    """What goes from the first stage to the second, by transformers' own account."""
    from transformers import AutoModelForCausalLM

    with torch.inference_mode():
        states = AutoModelForCausalLM.from_pretrained(model)(torch.tensor([IDS]), output_hidden_states=True).hidden_states
    end = answer["plan"]["stages"][0]["end"]
    return [states[end][0, position].numpy().tobytes()[:NEEDLE_BYTES] for position in range(len(IDS))]


def weights(model):
    """Pieces of all matrices of the layers."""
    checkpoint = open_folder(model)
    pieces = []
    for name, tensor in checkpoint.tensors.items():
        if ".layers." in name and len(tensor.shape) > 1:
            with Path(tensor.path).open("rb") as file:
                file.seek(tensor.offset + tensor.num_bytes // 2)
                pieces.append(file.read(NEEDLE_BYTES))
    return pieces


def seen(file, model, answer):
    """Of each kind of thing that is nobody's business, how many pieces passed in clear."""
    data = file.read_bytes()
    assert len(data) > 100_000
    needles = {
        "prompt": [varints(IDS)],
        "model": [model.name.encode()],
        "hidden states": hidden_states(model, answer),
        "weights": weights(model),
    }
    return {kind: sum(needle in data for needle in pieces) for kind, pieces in needles.items()}


def test_the_link_carries_nothing_in_clear(mesh):
    assert seen(mesh.link, mesh.model, mesh.answer) == {"prompt": 0, "model": 0, "hidden states": 0, "weights": 0}
    secrets = [Invitation.parse(command[3]).secret for command in mesh.commands]
    assert not any(secret in mesh.link.read_bytes() for secret in secrets)


def test_without_encryption_the_same_search_finds_all_of_it(mesh):
    """On the loopback interface, where workers that are not paired are found and used."""
    host = mesh.network.coordinator
    for number in range(2):
        mesh.start(host, f"plain{number}")
    mesh.wait_for("plain0", "plain1")
    with captured(host._namespace, mesh.folder / "loopback.pcap") as file:
        answer = mesh.generate("--spread", home="plain")
    assert [stage["worker"] for stage in answer["plan"]["stages"]] == ["plain0", "plain1", "local"]
    found = seen(file, mesh.model, answer)
    assert all(found.values()), found


def test_pairing_lasts_and_leaves_by_removal(mesh):
    name = "kitchen"
    mesh.workers[name].send_signal(signal.SIGINT)
    assert mesh.workers[name].wait(20) in (0, 130)
    mesh.start(mesh.network.hosts[1], name)
    mesh.wait_for(name)
    assert "Not paired" not in mesh.log(name).read_text()
    removed = mesh.run("nodes", "rm", "attic")
    assert removed["removed"]["name"] == "attic"
    assert removed["told"] == ["kitchen"]
    assert [node["name"] for node in mesh.run("nodes")["nodes"]] == ["kitchen"]
    workers = {worker["name"]: worker for worker in mesh.run("status")["workers"]}
    assert "was removed from this mesh" in workers["attic"]["problem"]
    assert workers["kitchen"]["problem"] is None
