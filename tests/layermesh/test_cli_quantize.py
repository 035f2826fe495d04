import json
from pathlib import Path

import pytest

from layermesh import LayerMesh
from layermesh.shared.errors import UsageError
from layermesh.shared.library.home import home


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERMESH_HOME", str(tmp_path / "home"))


def test_a_model_is_packed_into_a_folder_and_runs_from_there(layermesh, text_model, tmp_path):
    before = {file.name: file.read_bytes() for file in text_model.iterdir()}
    packed = layermesh("quantize", text_model, "--to", "int8", "--group-size", "64", "-o", tmp_path / "out")
    assert (packed.exit_code, packed.stdout) == (0, f"{tmp_path / 'out'}\n")
    assert packed.stderr.startswith(f"packing {text_model} to int8-g64 (")
    assert {file.name: file.read_bytes() for file in text_model.iterdir()} == before
    answer = layermesh("generate", "hello", "-m", tmp_path / "out", "-n", "4", "--json", "--device", "cpu")
    assert answer.exit_code == 0
    assert len(json.loads(answer.stdout)["token_ids"]) == 4


def test_quantize_packs_once_and_ls_and_rm_know_it(layermesh, text_model):
    first = layermesh("generate", "hello", "-m", text_model, "--quantize", "int4", "-n", "3", "--device", "cpu")
    assert first.exit_code == 0
    assert "packing" in first.stderr
    again = layermesh("plan", "-m", text_model, "--json", "--device", "cpu", LAYERMESH_QUANTIZE="int4")
    assert again.exit_code == 0
    assert "packing" not in again.stderr
    (listed,) = json.loads(layermesh("ls", "--json").stdout)
    assert (listed["name"], listed["origin"]) == (f"{text_model}@int4", "packed")
    named = layermesh("generate", "hello", "-m", listed["name"], "-n", "3", "--device", "cpu")
    assert (named.exit_code, named.stdout) == (0, first.stdout)
    removed = layermesh("rm", listed["name"])
    assert removed.exit_code == 0
    assert "freed" in removed.stderr
    assert not Path(listed["path"]).exists()
    assert layermesh("rm", listed["name"]).exit_code == 3
    assert text_model.is_dir()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--to", "int3"), "int4 or int8"),
        (("--group-size", "48"), "32, 64, 128"),
        (("--group-size", "x"), "--group-size"),
        (("-o", "."), "not empty"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(layermesh, bare_model, flags, said):
    refused = layermesh("quantize", bare_model, *flags)
    assert refused.exit_code == 2
    assert said in refused.stderr


@pytest.mark.parametrize("command", [("generate", "hello"), ("plan",)], ids=["generate", "plan"])
def test_flags_that_do_not_go_together_are_refused(layermesh, bare_model, command):
    for flags, said in ((("--group-size", "32"), "--quantize"), (("--quantize", "q4"), "int4 or int8")):
        refused = layermesh(*command, "-m", bare_model, *flags)
        assert refused.exit_code == 2
        assert said in refused.stderr


def test_a_packed_model_is_not_packed_again(layermesh, bare_model, tmp_path):
    assert layermesh("quantize", bare_model, "-o", tmp_path / "out").exit_code == 0
    again = layermesh("quantize", tmp_path / "out")
    assert again.exit_code == 2
    assert "packed already, to int4" in again.stderr
    other = layermesh("plan", "-m", tmp_path / "out", "--quantize", "int8")
    assert other.exit_code == 2
    assert layermesh("plan", "-m", tmp_path / "out", "--quantize", "int4", "--device", "cpu").exit_code == 0


def test_a_family_that_cannot_be_packed_is_a_model_error(layermesh, tiny):
    refused = layermesh("quantize", tiny("gpt2"))
    assert refused.exit_code == 3
    assert "Conv1D" in refused.stderr


def test_from_python(bare_model):
    with LayerMesh(str(bare_model), device="cpu", quantize="int8", group_size=32) as mesh:
        assert mesh.local.definition.packing.bits == 8
        assert len(mesh.generate([5, 6, 7], max_new_tokens=3, temperature=0).token_ids) == 3
    assert list((home() / "packed").iterdir())
    with pytest.raises(UsageError, match="int4 or int8"):
        LayerMesh(str(bare_model), quantize="int5")
