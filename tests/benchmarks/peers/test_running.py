"""One run from the outside: a runner that answers, one that skips, one that fails."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.benchmarks.peers import running
from tests.benchmarks.peers.cgroups import Controller, Group
from tests.benchmarks.peers.contestants import Contestant
from tests.benchmarks.peers.running import Conditions, run


@pytest.fixture(autouse=True)
def runners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of runners of our own, and a benchmarks' folder that is empty."""
    folder = tmp_path / "peers" / "runners"
    folder.mkdir(parents=True)
    monkeypatch.setattr(running, "BENCHMARKS", tmp_path)
    monkeypatch.setattr(running, "find_controller", lambda: None)
    monkeypatch.setenv("LAYERMESH_BENCH_HOME", str(tmp_path / "home"))
    return folder


def contestant(runners: Path, program: str) -> Contestant:
    (runners / "example.py").write_text(program)
    (runners / "weights.gguf").write_bytes(b"x" * 5000)
    return Contestant("example", "example", None, runners / "weights.gguf", num_new=3, options={"quantize": "int4"})


def test_last_line_is_what_counts(runners: Path) -> None:
    program = (
        "import json, sys, os\n"
        "job = json.loads(sys.argv[1])\n"
        "print('what peers print')\n"
        "print(json.dumps({'prefill_seconds': 2, 'decode_seconds_per_token': [0.5] * (job['num_new'] - 1),\n"
        "                  'threads': os.environ['OMP_NUM_THREADS'], 'options': job['options']}))\n"
    )
    result = run(contestant(runners, program), Conditions(num_threads=1, cap_bytes=10**9, cold=False))
    assert result.problem is None
    assert result.decode_rate == 2
    assert result.figures["threads"] == "1"
    assert result.figures["options"] == {"quantize": "int4"}
    assert result.group_peak_bytes is None


@pytest.mark.parametrize(
    ("program", "problem"),
    [
        pytest.param('print(\'{"skipped": "no such option"}\')', "no such option", id="skips"),
        pytest.param("raise ValueError('too large')", "exit code 1: ValueError: too large", id="fails"),
        pytest.param("import os; os.kill(os.getpid(), 9)", "exit code -9 (killed: over the memory cap?): ", id="killed"),
    ],
)
def test_problems_are_told(runners: Path, program: str, problem: str) -> None:
    result = run(contestant(runners, program), Conditions(cold=False))
    assert result.problem == problem
    assert result.decode_rate is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has control groups")
def test_runner_is_in_its_group_and_on_its_cores(runners: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def fake_group(limit_bytes: int, controller: object) -> Iterator[Group]:
        (tmp_path / "group").mkdir()
        yield Group(tmp_path / "group", Controller(tmp_path, "limit", "peak", "swap"))

    monkeypatch.setattr(running, "capped", fake_group)
    program = "import json, os\nprint(json.dumps({'cores': len(os.sched_getaffinity(0))}))"
    result = run(contestant(runners, program), Conditions(num_threads=1, cap_bytes=10**9, cold=False))
    assert (tmp_path / "group" / "cgroup.procs").read_text() == "0"
    assert result.figures["cores"] == 1


def test_endless_runner_is_ended(runners: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def expire(*_: object, timeout: float, **__: object) -> None:
        raise subprocess.TimeoutExpired("example", timeout)

    monkeypatch.setattr(running.subprocess, "run", expire)
    assert run(contestant(runners, ""), Conditions(cold=False)).problem == "no end after 900 s"
