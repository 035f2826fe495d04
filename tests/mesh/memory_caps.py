"""Memory limits for commands: control groups, several at a time."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tests.benchmarks.peers.cgroups import find_controller
from tests.mesh.waiting import wait_until

_ENTER = """
import os, sys
with open(sys.argv[1] + "/cgroup.procs", "w") as group:
    group.write("0")
os.execvp(sys.argv[2], sys.argv[2:])
"""


class MemoryCap:
    """A control group in which everything together, page cache included, stays below `limit_bytes`, swap included."""

    def __init__(self, name: str, limit_bytes: int) -> None:
        controller = find_controller()
        if controller is None:
            pytest.skip("memory cannot be limited here")
        self._controller = controller
        self.folder = controller.parent / f"layermesh-{name}"
        if controller.version == 2:
            with suppress(OSError):  # it is on already, or not ours to turn on
                (controller.parent / "cgroup.subtree_control").write_text("+memory")
        self.folder.mkdir()
        (self.folder / controller.limit).write_text(str(limit_bytes))
        with suppress(OSError):  # without swap there is nothing more to limit
            (self.folder / controller.swap_limit).write_text(str(limit_bytes if controller.version == 1 else 0))

    @property
    def peak_bytes(self) -> int:
        """The most that was taken so far."""
        return int((self.folder / self._controller.peak).read_text())

    def remove(self) -> None:
        """Remove the group, which must be empty; the kernel takes a moment to see that."""
        wait_until(self._is_removed)

    def _is_removed(self) -> bool:
        with suppress(OSError):
            self.folder.rmdir()
        return not self.folder.exists()


def launched(command: Sequence[str | Path], cap: MemoryCap | None) -> list[str]:
    """Return the command that enters `cap` and becomes `command`."""
    entering = [] if cap is None else [sys.executable, "-S", "-E", "-c", _ENTER, str(cap.folder)]
    return [*entering, *map(str, command)]
