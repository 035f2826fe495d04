"""Workers that come, go and come back between requests of one coordinator."""

import asyncio
import threading
import time
from concurrent import futures
from contextlib import suppress

import pytest

from layermesh.coordinator import registry
from layermesh.shared import apart
from layermesh.shared.announcement import Announcement
from layermesh.shared.errors import MeshError
from layermesh.shared.heartbeat import SILENCE_SECONDS
from layermesh.worker.stage import Stage
from tests.mesh.meshes import answer_alone, ask, machines, open_mesh, stages
from tests.mesh.waiting import wait_until

pytestmark = pytest.mark.usefixtures("one_thread", "no_models_there")


class Announced:
    """Stands in for multicast, which the loopback interface has not."""

    workers = ()
    problem = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def found(self):
        return tuple(
            Announcement(worker.id, worker.name, 1, worker.port, ("127.0.0.1",)) for worker in self.workers if worker.port
        )

    def wait(self, _seconds, _enough):
        return self.found()


@pytest.fixture
def announced(monkeypatch):
    monkeypatch.setattr(registry, "Browser", Announced)
    monkeypatch.setattr(Announced, "workers", [])
    return Announced


def test_the_next_request_uses_whoever_is_there(tiny, loopback, announced):
    expected = answer_alone(tiny("llama"))
    first, second = loopback.add(2)
    with open_mesh(tiny("llama"), [], discover=True) as mesh:

        def check(*there):
            announced.workers = [worker for worker in loopback.workers if worker in there]
            answer = ask(mesh)
            assert answer.token_ids == expected
            assert machines(answer) == [*(worker.name for worker in there), "local"]

        check()
        check(first)
        check(first, second)
        check(second)
        check(first, second)
        servers = [first.server, second.server]
        (third,) = loopback.add(1)
        check(first, second, third)
        assert [first.server, second.server] == servers
        third.stop()
        announced.workers = [first, second, third]  # its announcement lives on for a while
        assert machines(ask(mesh)) == ["w0", "w1", "local"]
        third.start()
        wait_until(lambda: machines(ask(mesh)) == ["w0", "w1", "w2", "local"])
        assert ask(mesh).token_ids == expected


def test_a_named_worker_that_went_away_is_done_without_until_it_is_back(tiny, loopback):
    expected = answer_alone(tiny("llama"))
    workers = loopback.add(2)
    said = []
    with open_mesh(tiny("llama"), workers, tell=said.append) as mesh:
        assert machines(ask(mesh)) == ["w0", "w1", "local"]
        workers[1].stop()
        answer = ask(mesh)
        assert (machines(answer), answer.token_ids) == (["w0", "local"], expected)
        assert any("w1" in sentence and "does not answer" in sentence for sentence in said)
        workers[1].start()
        wait_until(lambda: machines(ask(mesh)) == ["w0", "w1", "local"])
        for worker in workers:
            worker.stop()
        answer = ask(mesh)
        assert (machines(answer), answer.token_ids) == (["local"], expected)


def test_a_worker_whose_preparation_fails_is_named_and_done_without(tiny, loopback, monkeypatch):
    (worker,), said = loopback.add(1), []
    build = Stage.__init__

    def failing(stage, *arguments, **options):
        if threading.current_thread().name == apart.NAME:  # a worker's
            raise MeshError("made up")
        build(stage, *arguments, **options)

    expected = answer_alone(tiny("llama"))
    with open_mesh(tiny("llama"), [worker], tell=said.append) as mesh:
        with monkeypatch.context() as patch:
            patch.setattr(Stage, "__init__", failing)
            answer = ask(mesh)
            assert (machines(answer), answer.token_ids) == (["local"], expected)
            assert any("worker w0: made up" in sentence for sentence in said), said
        answer = ask(mesh)
        assert (machines(answer), answer.token_ids) == (["w0", "local"], expected)
        worker.stop()
        answer = ask(mesh)
        assert (machines(answer), answer.token_ids) == (["local"], expected)


def test_a_worker_that_is_silent_for_a_while_as_it_makes_layers_ready_is_not_lost(tiny, loopback, monkeypatch):
    (worker,), said = loopback.add(1), []
    build = Stage.__init__

    def stopping_everything(stage, *arguments, **options):
        if threading.current_thread().name == apart.NAME:  # a worker's
            worker._loop.call_soon_threadsafe(time.sleep, SILENCE_SECONDS + 1)
        build(stage, *arguments, **options)

    monkeypatch.setattr(Stage, "__init__", stopping_everything)
    with open_mesh(tiny("llama"), [worker], tell=said.append) as mesh:
        answer = ask(mesh)
    assert (machines(answer), answer.token_ids) == (["w0", "local"], answer_alone(tiny("llama")))
    assert not answer.failovers
    assert not any("does not answer" in sentence for sentence in said), said


def ask_in_vain(mesh):
    with suppress(MeshError, asyncio.CancelledError, futures.CancelledError):
        ask(mesh)
        pytest.fail("nobody should have answered")


def test_who_goes_away_in_the_middle_of_a_preparation_leaves_nothing_half_open(tiny, loopback, monkeypatch):
    (worker,) = loopback.add(1)
    opening, go_on = threading.Event(), threading.Event()
    build = Stage.__init__

    def slow(stage, *arguments, **options):
        if threading.current_thread().name == apart.NAME:
            opening.set()
            go_on.wait(10)
        build(stage, *arguments, **options)

    monkeypatch.setattr(Stage, "__init__", slow)
    with open_mesh(tiny("llama"), [worker]) as mesh:
        asking = threading.Thread(target=ask_in_vain, args=(mesh,))
        asking.start()
        assert opening.wait(10)
        loop = mesh.workers._registry.loop
        loop.run(mesh.workers._registry._known[worker.address].client.close())
        go_on.set()
        asking.join(10)
        assert not asking.is_alive()
    with open_mesh(tiny("llama"), [worker]) as mesh:
        assert ask(mesh).token_ids == answer_alone(tiny("llama"))
    wait_until(lambda: [stage.routes for stage in stages(worker)] == [set()])
