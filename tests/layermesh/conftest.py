from collections.abc import Callable
from pathlib import Path

import pytest
from cli_checkpoints import add_tokenizer, build_llama, copied
from click.testing import Result
from typer.testing import CliRunner

from layermesh.cli import app


@pytest.fixture(scope="session")
def bare_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a tokenizer."""
    return build_llama(tmp_path_factory.mktemp("bare") / "bare-llama")


@pytest.fixture(scope="session")
def text_model(bare_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a tokenizer and a chat template."""
    return add_tokenizer(copied(bare_model, tmp_path_factory.mktemp("text") / "text-llama"))


@pytest.fixture
def spoilt(bare_model: Path, tmp_path: Path) -> Path:
    """A copy of the model without a tokenizer, for the test to change."""
    return copied(bare_model, tmp_path / "spoilt-llama")


@pytest.fixture(autouse=True)
def own_environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the user's LAYERMESH_* settings, and a home of the tests' own."""
    import os

    for name in [name for name in os.environ if name.startswith("LAYERMESH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LAYERMESH_ALONE", "1")
    monkeypatch.setenv("LAYERMESH_HOME", str(tmp_path_factory.getbasetemp() / "layermesh-home"))


@pytest.fixture
def layermesh() -> Callable[..., Result]:
    """Run a command line in this process; the result has exit_code, stdout and stderr."""

    def run(*arguments: str | Path, stdin: str | bytes = "", **environ: str) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin, env=environ)

    return run
