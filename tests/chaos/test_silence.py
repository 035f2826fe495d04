"""R2 and R3: workers that are frozen, or cannot be reached for a while, one way or both."""

import random
import threading
import time

import pytest

from tests.architectures.tiny import build
from tests.chaos.interrupted import Interrupted
from tests.chaos.links import links
from tests.chaos.meshes import ask, ask_alone, machines, open_mesh, wait_for_all
from tests.mesh.waiting import wait_until

NOTICED_SECONDS = 3.0
DEADLINE_SECONDS = 10.0
RETURN_SECONDS = 5.0
HEALED_SECONDS = 12.0  # a connection begun meanwhile has to be given up first
EVERYBODY = ["w0", "w1", "w2"]
SECONDS = (1.0, 4.0, 12.0, 30.0)
SAMPLE = {("two-way", 1.0), ("two-way", 4.0)}


def slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build("llama", tmp_path_factory.mktemp("silent") / "model")


@pytest.fixture(scope="module")
def expected(model):
    return ask_alone(model)


def owners(workers, num_layers=4):
    """For each layer, who says that they run it for somebody's session."""
    running = [(worker.name, span) for worker in workers for span in worker.describe().running if span.num_sessions]
    return [[name for name, span in running if span.key.start <= layer < span.key.end] for layer in range(num_layers)]


def seconds_until_noticed(mesh, answering):
    """How long it takes until the coordinator knows that its route is broken, with a call under way that comes too late."""
    route, began = mesh.workers._route, time.monotonic()
    asking = threading.Thread(target=answering.until, args=(len(answering.heard.token_ids) + 2,))
    asking.start()
    wait_until(lambda: route.is_broken, DEADLINE_SECONDS)
    seconds = time.monotonic() - began
    asking.join(DEADLINE_SECONDS)
    assert not asking.is_alive()
    return seconds


@pytest.mark.parametrize("number", [0, slow(1), slow(2)])
def test_a_frozen_worker_is_noticed_and_used_again_when_it_wakes(model, expected, all_there, number, series):
    worker, trials = all_there[number], series("R2 SIGSTOP, until noticed")
    with open_mesh(model, [one.address for one in all_there]) as mesh:
        wait_for_all(mesh, 3)
        answering = Interrupted(mesh)
        answering.until(5)
        worker.freeze()
        noticed = seconds_until_noticed(mesh, answering)
        answering.until(12)
        assert worker.name not in machines(mesh)
        worker.thaw()  # what it was given before it has now, and hands it on
        wait_until(lambda: mesh.workers.returned() != frozenset(), RETURN_SECONDS)
        answering.until(14)  # the one before was under way
        assert machines(mesh) == EVERYBODY
        heard = answering.finish()
        assert heard.difference(expected) == ""
        assert [failover.reason for failover in answering.failovers] == ["lost", "returned"]
        assert noticed <= DEADLINE_SECONDS
        assert ask(mesh).is_equal(expected)
        assert machines(mesh) == EVERYBODY
    trials.add("identical, used again", noticed)


WAYS = {"two-way": (False, False), "to it": (False, True), "from it": (True, False)}
PARTITIONS = [
    pytest.param(way, seconds, marks=[] if (way, seconds) in SAMPLE else pytest.mark.slow)
    for way in WAYS
    for seconds in SECONDS
]


@pytest.mark.parametrize(("way", "seconds"), PARTITIONS)
def test_a_partition_is_noticed_and_heals(model, expected, all_there, way, seconds, series, report, capfd):
    trials = series(f"R3 partition {way}, until noticed")
    number = random.Random(f"{report.seed} {way} {seconds}").randrange(3)
    told = []
    with (
        links([worker.port for worker in all_there]) as ways,
        open_mesh(model, [way.address for way in ways], tell=told.append) as mesh,
    ):
        wait_for_all(mesh, 3)
        answering = Interrupted(mesh)
        answering.until(5)
        ways[number].there, ways[number].back = WAYS[way]
        cut = time.monotonic()
        if seconds >= NOTICED_SECONDS:
            noticed = seconds_until_noticed(mesh, answering)
            assert noticed <= NOTICED_SECONDS
            answering.until(8)
        wait_until(lambda: time.monotonic() - cut > seconds, seconds + 5)
        ways[number].there = ways[number].back = True
        answering.until(10)
        lost = [sentence for sentence in told if "went away" in sentence]
        if seconds >= NOTICED_SECONDS:
            assert len(lost) == 1, told
            assert f"w{number} went away" in lost[0]
            wait_until(lambda: mesh.workers.returned() or machines(mesh) == EVERYBODY, HEALED_SECONDS)
        answering.until(14)
        wait_until(lambda: all(len(names) == 1 for names in owners(all_there)), RETURN_SECONDS)
        heard = answering.finish()
        assert heard.difference(expected) == ""
        assert ask(mesh).is_equal(expected)
        wait_until(lambda: all(worker.num_sessions() == 0 for worker in all_there), RETURN_SECONDS)
        if seconds >= NOTICED_SECONDS:
            assert machines(mesh) == EVERYBODY
            trials.add("identical, then one owner a layer", noticed)
        else:
            trials.add("identical" + (", not noticed" if not lost else ""))
    assert "chttp2" not in capfd.readouterr().err  # gRPC keeps its remarks to itself


@pytest.mark.slow
def test_workers_that_do_not_reach_each_other_are_noticed(model, expected, all_there, series):
    """The coordinator reaches both of them; the second one is done without, and asked again with the next request."""
    first, second = all_there[:2]
    with links([worker.port for worker in all_there]) as ways, open_mesh(model, [way.address for way in ways]) as mesh:
        wait_for_all(mesh, 3)
        answering = Interrupted(mesh)
        answering.until(5)
        ways[1].closed_to.add(first.command.pid)
        noticed = seconds_until_noticed(mesh, answering)
        assert noticed <= NOTICED_SECONDS
        answering.until(12)
        assert second.name not in machines(mesh)
        ways[1].closed_to.clear()
        heard = answering.finish()
        assert heard.difference(expected) == ""
        assert [failover.worker for failover in answering.failovers] == [second.name]
        assert ask(mesh).difference(expected) == ""
        assert machines(mesh) == EVERYBODY
    series("R3 partition between workers, until noticed").add("identical, used again", noticed)
