import signal
import subprocess
import sys

import pytest

from layermesh.shared.errors import UsageError
from layermesh.worker.faults import VARIABLE, Fault

STRIKE = """
from layermesh.worker.faults import Fault
fault = Fault.from_environ()
for step in range(20):
    print(step, flush=True)
    fault.strike_at(step)
"""


def test_nothing_happens_unless_asked_for():
    assert Fault.from_environ({}) is None
    assert Fault.from_environ({VARIABLE: ""}) is None


@pytest.mark.parametrize(
    "text", ["crash", "crash:hop", "crash:hop:", "crash:hop:-1", "crash:hop:1.5", "hang:hop:3", "crash:hop:²"]
)
def test_what_is_no_fault_is_refused(text):
    with pytest.raises(UsageError, match="crash:hop:17, for tests"):
        Fault.from_environ({VARIABLE: text})


def test_the_process_ends_as_killed_at_that_step():
    done = subprocess.run(
        [sys.executable, "-c", STRIKE], env={VARIABLE: "crash:hop:17"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.split() == [str(step) for step in range(18)]
