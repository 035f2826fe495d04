"""R16: Ctrl-C and SIGTERM end a worker and a coordinator in the middle of an answer, and leave nothing behind."""

import signal
import time

import pytest

from tests.architectures.tiny import build
from tests.chaos.endless import Generating
from tests.chaos.interrupted import Interrupted
from tests.chaos.meshes import ask_alone, open_mesh, wait_for_all
from tests.mesh.waiting import wait_until

DRAINED_SECONDS = 5.0
SIGNALS = {"Ctrl-C": (signal.SIGINT, 130), "SIGTERM": (signal.SIGTERM, 0)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build("llama", tmp_path_factory.mktemp("ending") / "model")


@pytest.mark.parametrize("goes_on", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["goes on", "rests"])
@pytest.mark.parametrize("how", SIGNALS)
def test_a_worker_hands_over_and_ends(model, all_there, how, goes_on, series):
    number, code = SIGNALS[how]
    expected, worker = ask_alone(model), all_there[1]
    with open_mesh(model, [one.address for one in all_there]) as mesh:
        wait_for_all(mesh, 3)
        answering = Interrupted(mesh)
        answering.until(6)
        command, began = worker.command, time.monotonic()
        command.send(number)
        if goes_on:
            wait_until(lambda: mesh.local.line.current.leaving, DRAINED_SECONDS)
            answering.until(8)
        assert command.wait(DRAINED_SECONDS + 1) == code, command.err
        seconds = time.monotonic() - began
        assert seconds <= DRAINED_SECONDS
        assert answering.finish().is_equal(expected)
        assert [failover.worker for failover in answering.failovers] == [worker.name]
        assert not goes_on or answering.failovers[0].reason == "left"
    assert command.companions == []
    assert "Traceback" not in command.err
    series("R16 a worker told to end").add(f"drained, exit {code}", seconds)


@pytest.mark.parametrize("how", SIGNALS)
def test_a_coordinator_ends_and_the_workers_forget(all_there, tmp_path, how, series):
    number, _ = SIGNALS[how]
    with Generating(tmp_path, all_there) as generating:
        command = generating.command
        began = time.monotonic()
        command.send(number)
        assert command.wait(DRAINED_SECONDS + 1) == 130, command.err
        seconds = time.monotonic() - began
        assert seconds <= DRAINED_SECONDS
        assert "Traceback" not in command.err
        assert command.companions == []
        wait_until(lambda: all(worker.num_routes() == 0 for worker in all_there), DRAINED_SECONDS)
        assert sum(worker.num_sessions() for worker in all_there) == 0
    series("R16 generate told to end").add("exit 130", seconds)
