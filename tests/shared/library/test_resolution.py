from pathlib import Path

import pytest
from layouts import put_catalog_model, put_repo

from layermesh.shared.errors import LayermeshError, ModelNotFoundError, UnsupportedModelError, UsageError
from layermesh.shared.library import DEFAULT_MODEL, ResolvedModel, resolve

pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.parametrize("name", ["folder", "./folder", "m.gguf", "o/n"])
def test_a_path_that_exists_comes_first(tmp_path: Path, name: str) -> None:
    (tmp_path / "m.gguf").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "o" / "n").mkdir(parents=True)
    assert resolve(name) == ResolvedModel(name, Path(name), "path")


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m.gguf").touch()
    assert resolve("~/m.gguf").path == tmp_path / "m.gguf"


@pytest.mark.parametrize("name", ["./x", "../x", "~/x", "~nobody/x", "m.gguf", "m.safetensors", "/x" * 3000])
def test_a_path_that_does_not_exist(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="no file or folder"):
        resolve(name)


def test_a_file_on_the_hub_is_written_with_a_colon() -> None:
    with pytest.raises(ModelNotFoundError, match=r"o/n:sub/m\.gguf"):
        resolve("o/n/sub/m.gguf")


@pytest.mark.parametrize(
    ("name", "error"),
    [("model.safetensors", UsageError), ("pytorch_model.bin", UnsupportedModelError), ("x", UnsupportedModelError)],
)
def test_files_that_are_no_model(tmp_path: Path, name: str, error: type[LayermeshError]) -> None:
    (tmp_path / name).touch()
    with pytest.raises(error):
        resolve(name)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("smollm2", DEFAULT_MODEL), ("SmolLM2-135M", DEFAULT_MODEL), ("qwen3-8b", "Qwen/Qwen3-8B"), ("zzz", None)],
)
def test_a_near_miss_is_named(tmp_path: Path, name: str, meant: str | None) -> None:
    put_repo(tmp_path / "hub", "Qwen/Qwen3-8B", {"config.json": b"{}", "model.safetensors": b"1"})
    with pytest.raises(ModelNotFoundError, match="owner/name") as error:
        resolve(name)
    assert (f"Did you mean {meant}?" in str(error.value)) == (meant is not None)


@pytest.mark.parametrize("name", ["", " ", "a b", "a/b/c", "\0", "o/n:", "é"])
def test_names_that_are_nothing(name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        resolve(name)


def test_a_revision_is_for_the_hub(tmp_path: Path) -> None:
    put_catalog_model(tmp_path)
    for name in (DEFAULT_MODEL, "."):
        with pytest.raises(UsageError, match="--revision"):
            resolve(name, revision="main")


def test_the_catalog_offline(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="offline"):
        resolve(DEFAULT_MODEL, offline=True)
    path = put_catalog_model(tmp_path)
    assert resolve(DEFAULT_MODEL, offline=True) == ResolvedModel(DEFAULT_MODEL, path, "catalog")
