"""Workers that come to grief before anything has come back of an answer."""

import threading
import time

import pytest

from layermesh.coordinator.planning.machines import Link, Links, Machine
from layermesh.coordinator.planning.mesh_plan import Part, predict_mesh
from layermesh.coordinator.remote_route import RemoteRoute
from layermesh.model_cost import model_cost
from layermesh.planning import Planning
from layermesh.shared import apart
from layermesh.shared.spans import LayerSpan
from layermesh.worker.stage import Stage
from tests.mesh.loopback import PROFILE
from tests.mesh.meshes import answer_alone, ask, machines, open_mesh

pytestmark = pytest.mark.usefixtures("one_thread", "no_models_there")


@pytest.fixture(scope="module")
def expected(tiny):
    return answer_alone(tiny("llama"))


def test_a_worker_that_goes_away_while_it_gets_ready_is_done_without(tiny, loopback, expected, monkeypatch):
    workers, said = loopback.add(2), []
    build = Stage.__init__
    once = threading.Event()

    def dying(stage, *arguments, **options):
        if threading.current_thread().name == apart.NAME and not once.is_set():
            once.set()
            ending = threading.Thread(target=workers[1].stop)
            ending.start()
            time.sleep(0.3)
        build(stage, *arguments, **options)

    monkeypatch.setattr(Stage, "__init__", dying)
    with open_mesh(tiny("llama"), workers, tell=said.append) as mesh:
        answer = ask(mesh)
        assert answer.token_ids == expected
        assert machines(answer) == ["w0", "local"]
        assert any("w1" in sentence and "Going on without" in sentence for sentence in said), said


def test_what_is_lost_in_the_first_call_may_come_to_this_machine(tiny, loopback, expected, monkeypatch):
    """Nothing has come back yet, and the stage here is a new one that knows of no session."""
    monkeypatch.setattr(Planning, "patch", to_this_machine)
    workers, killed = loopback.add(2), threading.Event()
    forward = Stage.forward

    def dying(stage, frames, **how):
        if stage.span.start and len(stage.span) and not killed.is_set():
            killed.set()
            ending = threading.Thread(target=workers[1].stop)
            ending.start()
            time.sleep(0.3)
        return forward(stage, frames, **how)

    with open_mesh(tiny("llama"), workers) as mesh:
        monkeypatch.setattr(Stage, "forward", dying)
        answer = ask(mesh)
        assert answer.token_ids == expected
        assert machines(answer) == ["w0", "local"]
        assert answer.plan.stages[1].start == 2


def to_this_machine(planning, peers, placed, _caps, _best):
    cost = model_cost(planning._local)
    kept = [Part(Machine(peer.name, PROFILE), span) for peer in peers for name, span in placed if name == peer.name]
    own = Machine("local", PROFILE, is_coordinator=True)
    links = Links({peer.name: Link(1e-3, 1e8) for peer in peers})
    return predict_mesh(cost, [*kept, Part(own, LayerSpan(kept[-1].span.end, len(cost.layers)))], links)


def test_a_worker_that_goes_away_as_the_route_is_opened_leaves_this_machine_able_to_work(tiny, loopback, expected, monkeypatch):
    (worker,) = loopback.add(1)
    init = RemoteRoute.__init__

    def late(route, *arguments):
        worker.stop()
        init(route, *arguments)

    with open_mesh(tiny("llama"), [worker]) as mesh:
        mesh.workers.find()
        monkeypatch.setattr(RemoteRoute, "__init__", late)
        for _ in range(2):
            answer = ask(mesh)
            assert (answer.token_ids, machines(answer)) == (expected, ["local"])
