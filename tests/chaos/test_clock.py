"""R9: a wall clock that is three hours ahead or behind, or jumps in the middle of an answer."""

import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.architectures.tiny import build
from tests.chaos.interrupted import Interrupted
from tests.chaos.meshes import ask, ask_alone, open_mesh, wait_for_all
from tests.chaos.workers import Worker

pytestmark = pytest.mark.slow
THREE_HOURS = 3 * 3600


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("a wrong clock needs a C compiler and Linux")
    made = tmp_path_factory.mktemp("clock") / "wrong_clock.so"
    source = Path(__file__).parent / "wrong_clock.c"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", made, source, "-ldl"], check=True)
    return made


class Clock:
    """How wrong a process's clock is, in seconds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.write_bytes(bytes(8))

    def set(self, seconds: int) -> None:
        file = os.open(self.path, os.O_WRONLY)
        os.pwrite(file, struct.pack("q", seconds), 0)
        os.close(file)


def test_the_clock_is_really_wrong(library, tmp_path):
    clock = Clock(tmp_path / "clock")
    clock.set(-THREE_HOURS)
    environ = {**os.environ, "LD_PRELOAD": str(library), "WRONG_CLOCK": str(clock.path)}
    script = "import time; print(time.time(), time.monotonic())"
    said = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True).stdout
    wall, steady = map(float, said.split())
    assert abs(time.time() - THREE_HOURS - wall) < 60
    assert abs(time.monotonic() - steady) < 60


def test_answers_do_not_depend_on_the_wall_clock(library, tmp_path, series):
    model = build("llama", tmp_path / "model")
    expected, trials = ask_alone(model), series("R9 a wrong clock")
    workers = [Worker(tmp_path, number) for number in range(2)]
    clocks = [Clock(tmp_path / f"{worker.name}.clock") for worker in workers]
    clocks[0].set(THREE_HOURS)
    clocks[1].set(-THREE_HOURS)
    try:
        for worker, clock in zip(workers, clocks, strict=True):
            worker.begin(preloaded=library, WRONG_CLOCK=str(clock.path))
        for worker in workers:
            worker.wait()
        with open_mesh(model, [worker.address for worker in workers]) as mesh:
            wait_for_all(mesh, 2)
            assert ask(mesh).is_equal(expected)
            trials.add("identical, clocks ±3 h")
            for jump in (-THREE_HOURS, THREE_HOURS):
                answering = Interrupted(mesh)
                answering.until(8)
                for clock in clocks:
                    clock.set(jump)
                began = time.monotonic()
                answering.until(16)
                clocks[0].set(-jump)
                assert answering.finish().is_equal(expected)
                assert answering.failovers == ()
                trials.add("identical, jump meanwhile", time.monotonic() - began)
    finally:
        for worker in workers:
            worker.end()
