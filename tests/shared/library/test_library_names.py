from pathlib import Path

import pytest

from layermesh.shared.errors import CheckpointError
from layermesh.shared.library.home import data_home_for, home_for
from layermesh.shared.library.names import HubName, check_file_name, check_no_escape, looks_like_path


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("Qwen/Qwen3-8B", HubName("Qwen/Qwen3-8B")),
        ("o/n:m.Q4_K_M.gguf", HubName("o/n", "m.Q4_K_M.gguf")),
        ("o/n:sub/m.gguf", HubName("o/n", "sub/m.gguf")),
        ("o/n:Q4_K_M", HubName("o/n", "Q4_K_M")),
        ("gpt2", None),
        ("a/b/c", None),
        ("../n", None),
        ("o/..", None),
        ("o/n:", None),
        ("C:/models/m.gguf", None),
    ],
)
def test_hub_names(name: str, parsed: HubName | None) -> None:
    assert HubName.parse(name) == parsed
    assert parsed is None or str(parsed) == name


@pytest.mark.parametrize("name", ["./x", "../x", "/x", "~/x", ".", "m.gguf", "a/m.GGUF", "m.safetensors", "x/y.bin"])
def test_paths(name: str) -> None:
    assert looks_like_path(name)


@pytest.mark.parametrize("name", ["smollm2-135m", "o/n", "o/n:m.gguf", ""])
def test_no_paths(name: str) -> None:
    assert not looks_like_path(name)


@pytest.mark.parametrize("name", ["..", "a/..", "../a", "a//b", "/a", "", "a b", "a\\b", "x" * 201, "a\n", "ä"])
def test_file_names_that_are_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match="nothing was downloaded"):
        check_file_name(name, "o/n")


def test_names_that_stay_inside_may_look_as_they_like() -> None:
    check_no_escape(["a b.png", "x/ä.json", "..a", "a..b"], "o/n")
    assert check_file_name("sub/model-00001.safetensors", "o/n") == "sub/model-00001.safetensors"


USER = Path("/users/u")


@pytest.mark.parametrize(
    ("platform", "environ", "folder"),
    [
        ("linux", {}, "/users/u/.cache/layermesh"),
        ("darwin", {}, "/users/u/Library/Caches/layermesh"),
        ("linux", {"XDG_CACHE_HOME": "/xdg"}, "/xdg/layermesh"),
        ("linux", {"XDG_CACHE_HOME": "/xdg", "LAYERMESH_HOME": "/mine"}, "/mine"),
        ("linux", {"LAYERMESH_HOME": ""}, "/users/u/.cache/layermesh"),
    ],
)
def test_home(platform: str, environ: dict[str, str], folder: str) -> None:
    assert home_for(platform, environ, USER) == Path(folder)


@pytest.mark.parametrize(
    ("platform", "environ", "folder"),
    [
        ("linux", {}, "/users/u/.local/share/layermesh"),
        ("darwin", {}, "/users/u/Library/Application Support/layermesh"),
        ("linux", {"XDG_DATA_HOME": "/xdg"}, "/xdg/layermesh"),
        ("linux", {"XDG_DATA_HOME": "/xdg", "LAYERMESH_HOME": "/mine"}, "/mine"),
    ],
)
def test_data_home(platform: str, environ: dict[str, str], folder: str) -> None:
    assert data_home_for(platform, environ, USER) == Path(folder)
