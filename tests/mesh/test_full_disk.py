"""A real disk that is full: said with its numbers, nothing half of it used, and well once there is room."""

import re
import subprocess

import pytest

from layermesh.shared.errors import DiskFullError
from layermesh.shared.part_source import PartSource
from layermesh.worker.part_writer import PARTIAL_SUFFIX
from layermesh.worker.store import Store
from tests.mesh.loopback import Loopback
from tests.mesh.meshes import answer_alone, ask, machines, open_mesh
from tests.shared.packing.packs import build_llama
from tests.storing import all_parts, describe, fetch

pytestmark = pytest.mark.usefixtures("one_thread")

MIB = 1 << 20
SIZE = 2 * MIB  # of the disk; the model's embedding takes twice that


class Disk:
    """A file system in memory that can be made larger and smaller."""

    def __init__(self, folder):
        self.folder = folder

    def resize(self, num_bytes):
        subprocess.run(["mount", "-o", f"remount,size={num_bytes}", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system of a given size can be mounted here: that takes root")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A model of 10 MB in one layer's parts and its embedding."""
    return build_llama(tmp_path_factory.mktemp("large") / "model", layers=2, vocab=16_000, hidden=128)


@pytest.mark.usefixtures("no_models_there")
def test_what_a_worker_has_no_room_for_goes_elsewhere_until_it_has(large, disk, loopback):
    said, (other,) = [], loopback.add(1)
    with Loopback(disk.folder) as cramped:
        (worker,) = cramped.add(1)
        worker.stop()
        worker.name, worker.id = "cramped", "f" * 32
        worker.start()
        with open_mesh(large, [worker, other], tell=said.append) as mesh:
            answer = ask(mesh)
            assert (answer.token_ids, machines(answer)) == (answer_alone(large), ["w0", "local"])
            assert answer.failovers == ()  # nobody waits for its return in the middle of an answer
            assert any(re.search(rf"worker cramped: no room in {worker.folder}.* needed, .* free", told) for told in said), said
            assert list(worker.folder.rglob(f"*{PARTIAL_SUFFIX}")) == []
            assert list(worker.folder.rglob("*.weights")) == []
            disk.resize(64 * MIB)
            answer = ask(mesh)
            assert list(worker.folder.rglob("*.weights"))
            assert (answer.token_ids, machines(answer)) == (answer_alone(large), ["cramped", "w0", "local"])


def receive_while_somebody_takes_the_rest(model, source, disk):
    with model.receiving("embed") as writer:
        for number, chunk in enumerate(source.read("embed")):
            if number == 1:
                disk.resize(2 * SIZE // 3)  # one chunk and a little more
            writer.write(chunk)


def test_a_disk_that_fills_up_in_the_middle_of_a_part_leaves_nothing_of_it(large, tmp_path, disk):
    described = describe(large, tmp_path / "unpacked")
    source = PartSource(described.checkpoint, described.manifest)
    model = Store(disk.folder / "store").add(described.manifest)
    disk.resize(64 * MIB)
    with pytest.raises(DiskFullError, match="no room in") as full:
        receive_while_somebody_takes_the_rest(model, source, disk)
    assert full.value.path == model.folder
    assert full.value.needed_bytes > full.value.free_bytes
    assert list(disk.folder.rglob(f"*{PARTIAL_SUFFIX}")) == []
    assert set(model.missing(all_parts(described.manifest))) == set(all_parts(described.manifest))
    disk.resize(64 * MIB)
    fetch(model, source, all_parts(described.manifest))
    assert model.missing(all_parts(described.manifest)) == ()
