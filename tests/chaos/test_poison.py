"""R13: a request that takes one worker down after the other ends by name, and the mesh stays up."""

import re

import pytest

from layermesh.shared.errors import MeshError
from tests.architectures.tiny import build
from tests.chaos.meshes import ask, ask_alone, machines, open_mesh, wait_for_all
from tests.mesh.waiting import wait_until

FATAL_STEP = 5


def test_a_request_that_kills_two_workers_is_failed_by_name(tmp_path, all_there, series):
    model = build("llama", tmp_path / "model")
    expected, short = ask_alone(model), ask_alone(model, num_tokens=FATAL_STEP)
    *doomed, survivor = all_there
    for worker in doomed:
        worker.end()
        worker.start(fault=f"crash:hop:{FATAL_STEP}")
    pid = survivor.command.pid
    with open_mesh(model, [worker.address for worker in all_there]) as mesh:
        wait_for_all(mesh, 3)
        with pytest.raises(MeshError, match="went down one after the other with this answer") as failed:
            ask(mesh)
        assert set(re.findall(r"w\d", str(failed.value))) == {worker.name for worker in doomed}
        wait_until(lambda: not any(worker.is_running for worker in doomed))
        assert ask(mesh, num_tokens=FATAL_STEP).is_equal(short)
        assert machines(mesh) == [survivor.name]
        for worker in doomed:
            worker.end()
            worker.start()
        wait_for_all(mesh, 3)
        assert ask(mesh).is_equal(expected)
        assert machines(mesh) == ["w0", "w1", "w2"]
    assert survivor.is_running
    assert survivor.command.pid == pid
    series("R13 poison").add("failed by name, mesh up")
