from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer
from pulling import Puller

from layermesh.shared.library import DEFAULT_MODEL, CatalogEntry


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def pull(hub: HubServer, tmp_path: Path) -> Puller:
    return Puller(tmp_path, hub.url)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache and a LAYERMESH_HOME of the test's own; the catalog's file may be five bytes long."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("LAYERMESH_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    small = CatalogEntry(DEFAULT_MODEL, "x==1", 1, "x/x.gguf", 5, "0" * 64)
    monkeypatch.setattr("layermesh.shared.library.resolution.CATALOG", {DEFAULT_MODEL: small})
    monkeypatch.setattr("layermesh.shared.library.installed.CATALOG", {DEFAULT_MODEL: small})
    return tmp_path / "hub"
