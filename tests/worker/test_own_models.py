import shutil

import pytest
from safetensors.torch import load_file, save_file

from layermesh.worker.own_models import find_own
from tests.storing import example


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERMESH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("layermesh.shared.library.resolution.fetch", lambda *_: pytest.fail("fetched"))


@pytest.mark.parametrize("kind", ["safetensors", "gguf", "int4"])
def test_the_same_model_here_is_found(kind):
    described = example(kind)
    found = find_own(str(described.checkpoint.path), None, described.manifest.fingerprint)
    assert found is not None
    assert found.tensors == described.checkpoint.tensors


def test_a_copy_elsewhere_is_the_same_model(tmp_path):
    described = example("sharded")
    shutil.copytree(described.checkpoint.path, tmp_path / "copy")
    found = find_own(str(tmp_path / "copy"), None, described.manifest.fingerprint)
    assert found is not None
    assert found.path == tmp_path / "copy"


def test_another_model_of_the_same_name_is_not_used(tmp_path):
    described = example("safetensors")
    shutil.copytree(described.checkpoint.path, tmp_path / "copy")
    tensors = load_file(tmp_path / "copy" / "model.safetensors")
    save_file({name: tensor * 2 for name, tensor in tensors.items()}, tmp_path / "copy" / "model.safetensors")
    assert find_own(str(tmp_path / "copy"), None, described.manifest.fingerprint) is None


@pytest.mark.parametrize(
    ("name", "revision"),
    [
        *(("smollm2-135m", None), ("owner/name", None), ("owner/name:Q4_K_M", "main"), ("/no/such", None), ("~nobody/x", None)),
        *(("a\0b", None), ("", None), ("x" * 5000, None), ("/dev/zero", None), ("/etc/passwd", None), ("/etc", None)),
    ],
)
def test_nothing_is_found_where_there_is_nothing_and_nothing_is_fetched(name, revision):
    assert find_own(name, revision, "0" * 64) is None


def test_a_damaged_model_is_not_used(tmp_path):
    described = example("safetensors")
    shutil.copytree(described.checkpoint.path, tmp_path / "copy")
    weights = tmp_path / "copy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    assert find_own(str(tmp_path / "copy"), None, described.manifest.fingerprint) is None
