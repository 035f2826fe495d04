"""Empty the page cache of a model's files, so that a run begins with a cold disk and pays for the pages it keeps."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

DROP_CACHES = Path("/proc/sys/vm/drop_caches")

How = Literal["all dropped", "model dropped", "warm"]


def drop(files: Iterable[Path]) -> How:
    """Forget all cached pages where we may, the files' where we cannot; return which of the two it was.

    The first also makes the libraries' pages count towards the memory cap of whoever maps them next.
    """
    advised = [_advise(path) for path in files]
    try:
        DROP_CACHES.write_text("1\n")
    except OSError:
        return "model dropped" if all(advised) else "warm"
    return "all dropped"


def _advise(path: Path) -> bool:
    if not hasattr(os, "posix_fadvise"):
        return False
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # only pages that are on the disk can be dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    return True
