"""Every hostile model is refused by name, or does no harm: no hang, no memory, no file elsewhere, no code of its own."""

import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.hostile.models import CANARY, MODELS

ROOT = Path(__file__).parent.parent.parent
SECONDS = 60.0  # in which any of them has an outcome, on a machine that has other things to do as well
MOST_BYTES = 300 << 20
EXIT_CODES = {"answer": 0, "UsageError": 2}
MAY_CHANGE = ("/dev/null", "/dev/tty", "/proc/self/")


class Opened:
    """What came of each model, by name; one that hangs or brings the process down is noted, and the next one goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.results: dict[str, dict[str, object]] = {}
        waiting = list(MODELS)
        while waiting:
            self._run(waiting)
            waiting = [name for name in waiting if name not in self.results]

    def _run(self, names: list[str]) -> None:
        environment = os.environ | {
            "LAYERMESH_HOME": str(self.home), "LAYERMESH_HOSTILE_FOLDER": str(self.folder), "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1", "HF_HOME": str(self.home), "TMPDIR": str(self.home), "PYTHONDONTWRITEBYTECODE": "1",
            "RUST_BACKTRACE": "0",
        }  # fmt: skip
        self.home.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "tests.hostile.child", *names]
        log = (self.folder / "log").open("a")
        with log, subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True) as child:
            lines: queue.SimpleQueue[str] = queue.SimpleQueue()
            threading.Thread(target=self._read, args=[child, lines], daemon=True).start()
            begun, seconds = "", 60.0
            try:
                while line := lines.get(timeout=seconds):
                    told = json.loads(line)
                    begun, seconds = told.get("begun", ""), SECONDS
                    if "ended" in told:
                        self.results[told["ended"]] = told
            except queue.Empty:
                self.results[begun] = {"kind": f"no outcome in {seconds:.0f} s"}
            finally:
                child.kill()
            if begun and begun not in self.results:
                self.results[begun] = {"kind": f"brought the process down ({child.wait()})"}
            if not begun and not self.results:
                raise RuntimeError((self.folder / "log").read_text()[-3000:])

    @staticmethod
    def _read(child: "subprocess.Popen[str]", lines: "queue.SimpleQueue[str]") -> None:
        if child.stdout is not None:
            for line in child.stdout:
                if line.startswith("{"):
                    lines.put(line)
        lines.put("")


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    return Opened(tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("name", MODELS)
def test_a_hostile_model_does_no_harm(name, opened):
    model, result = MODELS[name], opened.results[name]
    assert result["kind"] in model.kinds, result
    assert model.said in result["said"]
    assert result["code"] == EXIT_CODES.get(result["kind"], 3)
    assert result["said"].isprintable()
    assert len(result["said"]) < 2000
    assert result["seconds"] < SECONDS
    assert result["grown_bytes"] < MOST_BYTES
    elsewhere = [path for path in result["changed"] if not path.startswith((str(opened.home), *MAY_CHANGE))]
    assert elsewhere == []


def test_there_are_enough_of_them():
    assert len(MODELS) >= 60


def test_no_code_of_a_model_has_run(opened):
    assert list(opened.folder.rglob("evil.py"))
    assert list(opened.folder.rglob(CANARY)) == []
