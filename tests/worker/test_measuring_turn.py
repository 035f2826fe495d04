import tempfile
import threading
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from layermesh.worker import measuring_turn as module
from layermesh.worker.measuring_turn import at_work, measuring_turn

pytestmark = pytest.mark.skipif(not hasattr(module, "fcntl"), reason="there are no such locks here")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def enter(turn: AbstractContextManager[None]) -> threading.Thread:
    def run() -> None:
        with turn:
            pass

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize("first", [measuring_turn, at_work], ids=["measuring", "at work"])
def test_whoever_measures_waits_for_the_others(first: type) -> None:
    with first():
        thread = enter(measuring_turn())
        thread.join(0.1)
        assert thread.is_alive()
    thread.join(10)
    assert not thread.is_alive()


def test_whoever_works_waits_only_for_those_who_measure() -> None:
    with ExitStack() as held:
        for _ in range(3):
            held.enter_context(at_work())
    with measuring_turn():
        thread = enter(at_work())
        thread.join(0.1)
        assert thread.is_alive()
    thread.join(10)
    assert not thread.is_alive()


def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.05)
    with measuring_turn(), measuring_turn(), at_work():
        pass


def test_where_nothing_can_be_written_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with measuring_turn(), measuring_turn():
        pass
