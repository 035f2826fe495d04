"""What this process may have, with limits that are really set: in a process of its own."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.peers.cgroups import find_controller

MIB = 1 << 20
TELL = """
import json, os, sys
if len(sys.argv) > 1:
    open(sys.argv[1], "w").write("0")
from layermesh.shared.process_limits import free_memory
from layermesh.shared.processor_count import num_processors
free = free_memory()
print(json.dumps({"bytes": free.num_bytes, "limit": free.limit, "processors": num_processors(),
                  "threads": os.environ.get("OMP_NUM_THREADS")}))
"""


def told(*arguments, **options):
    done = subprocess.run([sys.executable, "-c", TELL, *arguments], capture_output=True, text=True, timeout=60, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def group():
    """A group of memory in a group with a limit, as a job's step is in the job."""
    controller = find_controller()
    if controller is None:
        pytest.skip("memory cannot be limited here")
    outer = controller.parent / "layermesh-limited"
    inner = outer / "step"
    try:
        outer.mkdir()
        (outer / controller.limit).write_text(str(300 * MIB))
        inner.mkdir()
        yield inner
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    finally:
        for folder in (inner, outer):
            if folder.is_dir():
                folder.rmdir()


def test_the_limit_of_an_ancestor_counts(group):
    found = told(str(group / "cgroup.procs"))
    assert 200 * MIB < found["bytes"] < 300 * MIB
    assert "layermesh-limited/" in found["limit"]
    assert "is 315MB" in found["limit"]


@pytest.mark.skipif(sys.platform != "linux", reason="ulimit -v holds on Linux")
@pytest.mark.parametrize(("kind", "flag"), [(resource.RLIMIT_AS, "-v"), (resource.RLIMIT_DATA, "-d")], ids=["-v", "-d"])
def test_ulimits_count(kind, flag):
    found = told(preexec_fn=lambda: resource.setrlimit(kind, (1000 * MIB, 1000 * MIB)))
    assert 100 * MIB < found["bytes"] < 1000 * MIB
    assert found["limit"] == f"`ulimit {flag}` is 1.05GB"


def test_a_quota_of_processors_bounds_the_threads():
    parent = Path("/sys/fs/cgroup/cpu")
    if not (parent / "cpu.cfs_quota_us").parent.is_dir() or find_controller() is None:
        pytest.skip("processors cannot be limited here")
    group = parent / "layermesh-quota"
    try:
        group.mkdir()
        (group / "cpu.cfs_quota_us").write_text("50000")
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        enter = f"open({str(group / 'cgroup.procs')!r}, 'w').write('0')\n"
        script = enter + "import os\nimport layermesh, torch\nprint(os.environ['OMP_NUM_THREADS'], torch.get_num_threads())"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=environment)
        assert done.stdout.split() == ["1", "1"], done.stderr
    finally:
        group.rmdir()
