import os
from pathlib import Path

import pytest
from layouts import put_catalog_model, put_repo

from layermesh.shared.errors import ModelNotFoundError, UsageError
from layermesh.shared.library import DEFAULT_MODEL, list_models, remove, resolve
from layermesh.shared.library.catalog import CATALOG
from layermesh.shared.unpacked import note_sources


def test_nothing_is_here(cache: Path) -> None:
    assert list_models() == []


def test_the_catalog_and_the_cache_are_listed(cache: Path, tmp_path: Path) -> None:
    own = put_catalog_model(tmp_path)
    whole = put_repo(cache, "o/whole", {"config.json": b"{}", "model.safetensors": b"12345678"})
    put_repo(cache, "o/half", {"config.json": b"{}", "model.safetensors.index.json": b'{"weight_map": {"a": "x"}}'})
    put_repo(cache, "o/pickle", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    quants = put_repo(cache, "o/quants", {"m.Q4_0.gguf": b"1234", "m.Q8_0.gguf": b"12345678"})
    listed = {(model.name, model.origin, model.path, model.num_bytes) for model in list_models()}
    assert listed == {
        (DEFAULT_MODEL, "catalog", own, 5),
        ("o/whole", "hub", whole, 10),
        ("o/quants:m.Q4_0.gguf", "hub", quants / "m.Q4_0.gguf", 4),
        ("o/quants:m.Q8_0.gguf", "hub", quants / "m.Q8_0.gguf", 8),
    }


def test_the_last_used_comes_first(cache: Path, tmp_path: Path) -> None:
    os.utime(put_catalog_model(tmp_path), (1e9, 1e9))
    put_repo(cache, "o/n", {"config.json": b"{}", "model.safetensors": b"1"})
    assert [model.name for model in list_models()] == ["o/n", DEFAULT_MODEL]
    assert list_models()[1].used == 1e9


def test_what_is_listed_resolves(cache: Path, tmp_path: Path) -> None:
    put_catalog_model(tmp_path)
    put_repo(cache, "o/whole", {"config.json": b"{}", "model.safetensors": b"12345678"})
    put_repo(cache, "o/quants", {"m.Q4_0.gguf": b"1234", "m.Q8_0.gguf": b"12345678"})
    for model in list_models():
        found = resolve(model.name, offline=True)
        assert (found.path, found.origin) == (model.path, model.origin)


def test_removing_frees_what_it_says(cache: Path, tmp_path: Path) -> None:
    put_catalog_model(tmp_path)
    put_repo(cache, "o/n", {"config.json": b"{}", "model.safetensors": b"12345678"})
    (cache / "models--o--n" / "blobs" / "abc.incomplete").write_bytes(b"123")
    assert remove(DEFAULT_MODEL) == 5
    assert remove("o/n") == 13
    assert list_models() == []
    assert not (cache / "models--o--n").exists()


def test_what_was_unpacked_from_a_model_goes_with_it(cache: Path, tmp_path: Path) -> None:
    unpacked = tmp_path / "home" / "unpacked"
    others = put_repo(cache, "o/n", {"m.gguf": b"1234"}) / "m.gguf"
    for name, source in (("ours", put_catalog_model(tmp_path)), ("others", others)):
        (unpacked / name).mkdir(parents=True)
        note_sources(unpacked / name, [source])
    num_bytes = (unpacked / "ours" / "source.json").stat().st_size
    assert remove(DEFAULT_MODEL) == 5 + num_bytes
    assert [folder.name for folder in unpacked.iterdir()] == ["others"]
    remove("o/n:m.gguf")
    assert list(unpacked.iterdir()) == []


def test_removing_one_gguf_leaves_the_other(cache: Path) -> None:
    put_repo(cache, "o/n", {"m.Q4_0.gguf": b"1234", "m.Q8_0.gguf": b"12345678"})
    assert remove("o/n:Q4_0") == 4
    assert [model.name for model in list_models()] == ["o/n:m.Q8_0.gguf"]
    assert remove("o/n:m.Q8_0.gguf") == 8
    assert not (cache / "models--o--n").exists()


PIECES = {f"m-Q4_0-0000{number}-of-00003.gguf": b"12345678"[:number] for number in (1, 2, 3)}


def test_a_gguf_in_several_files_is_one_model(cache: Path) -> None:
    snapshot = put_repo(cache, "o/n", {**PIECES, "m.Q8_0.gguf": b"12345678"})
    (model,) = (model for model in list_models() if "Q4_0" in model.name)
    assert (model.name, model.path, model.num_bytes) == ("o/n:m-Q4_0-00001-of-00003.gguf", snapshot / min(PIECES), 6)
    assert resolve(model.name, offline=True).path == model.path
    assert remove("o/n:Q4_0") == 6
    assert [model.name for model in list_models()] == ["o/n:m.Q8_0.gguf"]


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_half_of_one_in_several_files_is_none_and_can_be_removed(cache: Path, lost: int) -> None:
    kept = [name for number, name in enumerate(PIECES) if number != lost]
    put_repo(cache, "o/n", {**{name: PIECES[name] for name in kept}, "m.Q8_0.gguf": b"12345678"})
    assert [model.name for model in list_models()] == ["o/n:m.Q8_0.gguf"]
    assert remove("o/n:q4_0") == 6 - (lost + 1)
    assert remove("o/n") == 8


def test_removing_the_rest_of_a_broken_pull(cache: Path) -> None:
    blobs = cache / "models--o--n" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "abc.incomplete").write_bytes(b"123")
    assert remove("o/n") == 3
    assert not blobs.parent.exists()


@pytest.mark.parametrize("name", [DEFAULT_MODEL, "o/n", "o/n:m.gguf", "nothing", "./nothing"])
def test_removing_what_is_not_here(cache: Path, name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="nothing to remove"):
        remove(name)


def test_a_path_is_never_removed(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for name in ("mine", "./mine", str(tmp_path / "mine")):
        with pytest.raises(UsageError, match="Delete it yourself"):
            remove(name)
    (tmp_path / "o" / "n").mkdir(parents=True)
    with pytest.raises(ModelNotFoundError):
        remove("o/n")
    assert (tmp_path / "mine").is_dir()
    assert (tmp_path / "o" / "n").is_dir()


def test_the_default_model_is_in_the_catalog() -> None:
    assert CATALOG[DEFAULT_MODEL].sha256.startswith("b179c9523d0e6a0f")
