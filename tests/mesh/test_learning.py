"""What answers show of machines' speed is known to the next plan."""

import pytest

from layermesh import LayerMesh
from layermesh.speed_notes import LEAST_TOKENS
from layermesh.worker.profile_cache import ProfileCache
from tests.mesh.loopback import PROFILE
from tests.mesh.meshes import ask, open_mesh
from tests.mesh.waiting import wait_until

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def unknown_home(tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERMESH_HOME", str(tmp_path / "home"))


def test_workers_tell_by_how_much_models_are_slower_there(tiny, loopback):
    workers = loopback.add(2)
    with open_mesh(tiny("llama"), workers) as mesh:
        fingerprint = mesh.local.manifest.fingerprint
        assert all(fingerprint not in peer.described.slowdown for peer in mesh.workers.find().peers)
        ask(mesh)
    noted = [ProfileCache(worker.folder.with_suffix(".profile")) for worker in workers]
    wait_until(lambda: all(cache.slowdowns(PROFILE) for cache in noted))  # with the end of the route
    with open_mesh(tiny("llama"), workers) as mesh:
        found = mesh.workers.find()
        assert [peer.described.slowdown[fingerprint] for peer in found.peers] == pytest.approx(
            [cache.slowdowns(PROFILE)[fingerprint] for cache in noted]
        )
        answer = ask(mesh)
        assert answer.plan.predicted_seconds_per_token == pytest.approx(found.plan.seconds_per_token, rel=1e-3)


@pytest.fixture
def nobody(monkeypatch):
    """Somebody is looked for, and nobody is there."""
    monkeypatch.setattr("layermesh.workers.Workers.find", lambda *_, **__: None)


def seen_alone(folder, num_tokens, **options):
    """Answer alone; return what is known of the model then, and the bytes that its stage took."""
    with LayerMesh(str(folder), device="cpu", workers=["127.0.0.1:9"], discover=False, alone=False, **options) as mesh:
        ask(mesh, num_tokens=num_tokens)
        return ProfileCache().slowdowns(PROFILE).get(mesh.local.manifest.fingerprint), mesh.local.stage.residency


@pytest.mark.parametrize(("num_tokens", "is_noted"), [(LEAST_TOKENS, False), (LEAST_TOKENS + 1, True)], ids=["few", "enough"])
def test_an_answer_alone_is_noted(tiny, nobody, num_tokens, is_noted):
    seen, _ = seen_alone(tiny("llama"), num_tokens)
    assert (seen is not None) == is_noted


def test_an_answer_that_streams_is_not_noted(tiny, nobody):
    _, residency = seen_alone(tiny("llama"), LEAST_TOKENS)
    seen, residency = seen_alone(tiny("llama"), LEAST_TOKENS + 1, host_memory=residency.total_bytes - 1)
    assert not residency.stays_whole
    assert seen is None
