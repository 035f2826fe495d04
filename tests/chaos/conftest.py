import logging
import os
import random
from collections.abc import Callable, Iterator

import pytest

from tests.chaos.report import Report, Series
from tests.chaos.workers import Worker, workers

os.environ["OMP_NUM_THREADS"] = "1"  # equal bits need equal threads, and processes inherit this


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="replay what a run with this seed did")
    parser.addoption("--full", action="store_true", help="all trials instead of a sample of them")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: part of the full run only")
    seed = config.getoption("--seed", None)  # options of a folder are known only where it was named
    config.stash[_REPORT] = Report(random.randrange(1 << 31) if seed is None else seed, full=config.getoption("--full", False))


def pytest_report_header(config: pytest.Config) -> str:
    return f"chaos: --seed {config.stash[_REPORT].seed} replays this"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--full", False):
        items[:] = [item for item in items if item.get_closest_marker("slow") is None]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    report = config.stash[_REPORT]
    terminalreporter.section("chaos")
    for line in report.lines():
        terminalreporter.write_line(line)
    if report.full:
        report.write()


_REPORT = pytest.StashKey[Report]()


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Report:
    return request.config.stash[_REPORT]


@pytest.fixture
def series(report: Report) -> Callable[[str], Series]:
    """Give the trials of a promise so far, to add to."""
    return report.series


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No model, profile or setting of the user's, and one thread to compute with."""
    import torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAYERMESH_HOME", str(tmp_path_factory.getbasetemp() / "home"))
        patch.delenv("LAYERMESH_ALONE", raising=False)
        torch.set_num_threads(1)
        yield


@pytest.fixture(autouse=True)
def nothing_fails_unseen(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No error may be left for the log: exceptions of tasks and of handlers end there."""
    yield
    records = [record for when in ("setup", "call") for record in caplog.get_records(when)]
    assert [record.getMessage() for record in records if record.levelno >= logging.ERROR] == []


@pytest.fixture(scope="session")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Worker]]:
    """Three workers for all tests."""
    with workers(tmp_path_factory.mktemp("workers"), 3) as made:
        yield made


@pytest.fixture
def all_there(three: list[Worker]) -> list[Worker]:
    """The three workers, each of them up and awake."""
    for worker in three:
        worker.thaw()
        if not worker.is_running:
            worker.end()
            worker.start()
    return three
