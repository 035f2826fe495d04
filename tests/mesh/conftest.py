import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mesh.loopback import Loopback


@pytest.fixture(autouse=True)
def nothing_fails_unseen(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No error may be left for the log: exceptions of tasks and of handlers end there."""
    yield
    records = [record for when in ("setup", "call") for record in caplog.get_records(when)]
    errors = [record for record in records if record.levelno >= logging.ERROR and not _is_for_a_closed_loop(record)]
    assert [record.getMessage() for record in errors] == []


def _is_for_a_closed_loop(record: logging.LogRecord) -> bool:
    """Whether gRPC, whose loops share one queue of events in a process, found one in it for a loop that has ended."""
    error = record.exc_info[1] if record.exc_info else None
    in_queue = "PollerCompletionQueue._handle_events" in record.getMessage()
    return in_queue and isinstance(error, RuntimeError) and str(error) == "Event loop is closed"


@pytest.fixture
def no_models_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers here share the disk with the coordinator; now they find no model on it, and have everything sent."""
    monkeypatch.setattr("layermesh.worker.preparing.find_own", lambda *_: None)


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model, profile or setting of the user's."""
    monkeypatch.setenv("LAYERMESH_HOME", str(tmp_path_factory.getbasetemp() / "mesh-home"))


@pytest.fixture
def loopback(tmp_path: Path) -> Iterator[Loopback]:
    with Loopback(tmp_path / "stores") as loopback:
        yield loopback
