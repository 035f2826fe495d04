"""R5: all workers go, the coordinator goes on alone, and one that comes back is used."""

import time

from tests.architectures.tiny import build
from tests.chaos.interrupted import Interrupted
from tests.chaos.meshes import ask, ask_alone, machines, open_mesh, wait_for_all
from tests.mesh.waiting import wait_until

BACK_SECONDS = 5.0


def test_the_answer_goes_on_alone_and_uses_a_worker_that_returns(tmp_path, all_there, report):
    model = build("llama", tmp_path / "model")
    expected, trials = ask_alone(model), report.series("R5 all lost, until a returning one is used")
    with open_mesh(model, [worker.address for worker in all_there]) as mesh:
        for number in range(3 if report.full else 1):
            wait_for_all(mesh, 3)
            answering = Interrupted(mesh)
            answering.until(5)
            for worker in all_there:
                worker.kill()
            answering.until(10)
            assert machines(mesh) == []
            returning = all_there[number]
            returning.end()
            returning.start()
            began = time.monotonic()
            wait_until(lambda: mesh.workers.returned() != frozenset(), BACK_SECONDS)
            answering.until(11)
            seconds = time.monotonic() - began
            assert machines(mesh) == [returning.name]
            heard = answering.finish()
            assert heard.is_equal(expected)
            reasons = [failover.reason for failover in answering.failovers]
            assert reasons[-1] == "returned"
            assert set(reasons[:-1]) == {"lost"}
            assert seconds <= BACK_SECONDS
            trials.add("identical", seconds)
            for worker in all_there:
                if not worker.is_running:
                    worker.end()
                    worker.start()
        wait_for_all(mesh, 3)
        assert ask(mesh).is_equal(expected)
