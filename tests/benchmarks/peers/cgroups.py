"""Cap the memory of a child process, page cache included, with a control group of Linux."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Controller:
    """Where groups that limit memory are made, and what their files are called there (versions 1 and 2 differ)."""

    parent: Path
    limit: str
    peak: str
    swap_limit: str

    @property
    def version(self) -> int:
        return 2 if self.limit == "memory.max" else 1


@dataclass(frozen=True, slots=True)
class Group:
    """One control group; a process enters it by writing to its `cgroup.procs`, and all it takes from then on counts."""

    folder: Path
    controller: Controller

    @property
    def peak_bytes(self) -> int | None:
        """The most it held at one time, page cache included; None where the kernel does not say."""
        try:
            return int((self.folder / self.controller.peak).read_text())
        except (OSError, ValueError):
            return None


def find_controller(root: Path = ROOT) -> Controller | None:
    """Return where this machine lets us cap memory; None where it does not (not Linux, not root, not delegated)."""
    first = Controller(root / "memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.memsw.limit_in_bytes")
    second = Controller(root, "memory.max", "memory.peak", "memory.swap.max")
    for controller, evidence in ((first, "memory.limit_in_bytes"), (second, "cgroup.controllers")):
        if (controller.parent / evidence).is_file() and os.access(controller.parent, os.W_OK):
            return controller
    return None


@contextmanager
def capped(limit_bytes: int | None, controller: Controller | None) -> Iterator[Group | None]:
    """Yield a group with this limit, and remove it afterwards; None without a limit, or where none can be set."""
    if limit_bytes is None or controller is None:
        yield None
        return
    group = Group(controller.parent / f"layermesh-bench-{os.getpid()}", controller)
    if controller.version == 2:
        with suppress(OSError):  # it is on already, or not ours to turn on
            (controller.parent / "cgroup.subtree_control").write_text("+memory")
    group.folder.mkdir()
    try:
        yield group if _limit(group, limit_bytes) else None
    finally:
        _remove(group.folder)


def _limit(group: Group, limit_bytes: int) -> bool:
    """Set the limit, swap included; return whether it holds."""
    controller = group.controller
    try:
        (group.folder / controller.limit).write_text(str(limit_bytes))
    except OSError:
        return False
    with suppress(OSError):  # without swap there is nothing more to limit
        (group.folder / controller.swap_limit).write_text(str(limit_bytes if controller.version == 1 else 0))
    return True


def _remove(folder: Path, patience_seconds: float = 5.0) -> None:
    """Remove an empty group; the kernel takes a moment to see that its last process has gone."""
    ends = time.monotonic() + patience_seconds
    while True:
        try:
            folder.rmdir()
        except OSError:
            if time.monotonic() > ends:
                raise
            time.sleep(0.05)
        else:
            return
