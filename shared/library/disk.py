"""Room on the disk: asked for beforehand, and what to say when there is none."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from layermesh.shared.errors import DiskFullError, ResourceError
from layermesh.shared.file_limit import is_out_of_files, too_many_files

_FULL: Final = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN: Final = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}


def is_file(path: Path) -> bool:
    """Whether there is such a file, as far as we may know: what lies in a folder that is not for us is not there."""
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises PermissionError


def is_folder(path: Path) -> bool:
    """Whether there is such a folder, as far as we may know."""
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises PermissionError


def is_unwritable(error: OSError) -> bool:
    """Whether `error` says that a folder cannot be written, or has no more room."""
    return error.errno in _FULL | _FORBIDDEN


def free_bytes(folder: Path) -> int:
    """Return the bytes free where `folder` is, or would be once it is made."""
    while not is_folder(folder):
        folder = folder.parent
    return shutil.disk_usage(folder).free


def require_room(folder: Path, num_bytes: int) -> None:
    """Raise DiskFullError unless `num_bytes` more bytes fit into `folder`."""
    free = free_bytes(folder)
    if free < num_bytes:
        raise DiskFullError(folder, num_bytes, free)


@contextmanager
def storing(folder: Path, num_bytes: int) -> Iterator[None]:
    """Turn what the system says while up to `num_bytes` bytes are stored in `folder` into our errors.

    Raises DiskFullError when the disk fills up, ResourceError when the folder cannot be written to.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(folder, num_bytes, free_bytes(folder)) from error
        if error.errno in _FORBIDDEN:
            raise ResourceError(
                f"cannot write in {folder}: {error.strerror}. Make it writable, or point LAYERMESH_HOME "
                "(HF_HOME for hub models) somewhere else."
            ) from error
        if is_out_of_files(error):
            raise too_many_files(folder, error) from error
        raise
