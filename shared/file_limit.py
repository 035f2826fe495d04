"""The limit on the files that a process may have open at a time."""

import errno
import sys
from pathlib import Path
from typing import Final

from layermesh.shared.errors import ResourceError

_UNLIMITED: Final = 1 << 20


def soft_limit() -> int:
    """Return the number of descriptors that this process may have now."""
    if sys.platform == "win32":
        return _UNLIMITED
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _UNLIMITED if soft == resource.RLIM_INFINITY else min(soft, _UNLIMITED)


def is_out_of_files(error: OSError) -> bool:
    """Whether `error` says that this process, or the whole system, has too many files open."""
    return error.errno in (errno.EMFILE, errno.ENFILE)


def too_many_files(path: Path, error: OSError) -> ResourceError:
    """Return the error for a file that cannot be opened because too many are open."""
    if error.errno == errno.ENFILE:
        return ResourceError(f"cannot open {path}: this system has too many open files. Close other programs, and try again.")
    return ResourceError(
        f"cannot open {path}: this process has too many open files, and may have {soft_limit()}. Run `ulimit -n 4096` in this "
        "shell first."
    )
