import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OWN = ("layermesh", "layermesh/commands")
ROOMS = ("coordinator", "worker", "protos", "shared")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_wheel_holds_every_module_where_it_is_imported_from(wheel):
    packed = [name for name in wheel.namelist() if ".dist-info/" not in name]
    expected = [str(path.relative_to(ROOT)) for folder in OWN for path in (ROOT / folder).glob("*.py")]
    expected += [f"layermesh/{path.relative_to(ROOT)}" for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    expected += [f"layermesh/protos/mesh{ending}" for ending in (".proto", "_pb2.pyi")]
    expected += [f"layermesh/{path.relative_to(ROOT)}" for path in (ROOT / "shared").rglob("*.[ch]")]
    assert sorted(packed) == sorted([*expected, "layermesh/py.typed"])


def test_the_packed_command_starts(wheel, tmp_path):
    wheel.extractall(tmp_path)
    run = subprocess.run(
        [sys.executable, "-c", "from layermesh.__main__ import main; main()", "--help"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "generate" in run.stdout
