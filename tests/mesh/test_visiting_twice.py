from layermesh.coordinator.planning.machines import Link, Links, Machine
from layermesh.coordinator.planning.mesh_plan import Part, predict_mesh
from layermesh.model_cost import model_cost
from layermesh.planning import Planning
from layermesh.shared.spans import LayerSpan
from tests.mesh.loopback import PROFILE
from tests.mesh.meshes import answer_alone, ask, open_mesh


def test_a_route_may_come_by_a_worker_several_times(tiny, loopback, monkeypatch):
    workers = loopback.add(2)

    def there_and_back(self, peers, *_):
        one, other = (Machine(peer.name, PROFILE) for peer in peers)
        parts = [Part(one, LayerSpan(0, 1)), Part(other, LayerSpan(1, 3)), Part(one, LayerSpan(3, 4))]
        return predict_mesh(model_cost(self._local), parts, Links({peer.name: Link(1e-3, 1e8) for peer in peers}))

    monkeypatch.setattr(Planning, "plan", there_and_back)
    with open_mesh(tiny("llama"), workers) as mesh:
        answer = ask(mesh)
        assert answer.token_ids == answer_alone(tiny("llama"))
        assert [(stage.worker, stage.start, stage.end) for stage in answer.plan.stages] == [
            ("w0", 0, 1),
            ("w1", 1, 3),
            ("w0", 3, 4),
        ]
        assert len(answer.timings.hops) == 3
    assert all(not stage.routes for worker in workers for stage in worker.server.stages)
