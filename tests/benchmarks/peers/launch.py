"""Become a command that stays in a control group and on some cores: `python launch.py GROUP THREADS COMMAND [ARGUMENT ...]`.

GROUP is the folder of a control group, or nothing. This is a process of its own because what is called between fork and exec
may not be sure of its locks.
"""

import os
import sys
from pathlib import Path


def main() -> None:
    """Enter, pin, and be replaced by the command."""
    group, num_threads, *command = sys.argv[1:]
    if group:
        (Path(group) / "cgroup.procs").write_text("0")  # whoever writes it
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(num_threads)])
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
