"""Files that nobody but their user may read: keys, and what says who belongs to a mesh."""

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from layermesh.shared.errors import AuthenticationError
from layermesh.shared.library.disk import storing

_FILE_MODE: Final = 0o600
_FOLDER_MODE: Final = 0o700
_OTHERS: Final = 0o077


def write_private(path: Path, data: bytes) -> None:
    """Replace the file at `path` in one step, so that a reader finds the old content or the new, in a folder of the user's own.

    Raises AuthenticationError where others can get into the folder, DiskFullError, ResourceError.
    """
    with storing(path.parent, len(data)):
        make_private_folder(path.parent)
        partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            _write_new(partial, data)
            partial.replace(path)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise
        _flush(path.parent)


def read_private(path: Path, most_bytes: int) -> bytes | None:
    """Return what is in the file, or None where there is none.

    Raises AuthenticationError for one that others can read or change, and for one of more than `most_bytes`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise AuthenticationError(f"{path} cannot be read ({error.strerror}). Look at who owns it.") from error
    with open(descriptor, "rb") as file:  # noqa: PTH123 - by its descriptor
        _check(path, os.fstat(descriptor), f"chmod 600 {path}")
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise AuthenticationError(f"{path} is larger than anything layermesh writes there. Restore it, or move it away.")
    return data


def make_private_folder(folder: Path) -> None:
    """Make the folder if there is none. Raises AuthenticationError for one that others can get into."""
    folder.mkdir(_FOLDER_MODE, parents=True, exist_ok=True)
    _check(folder, folder.stat(), f"chmod 700 {folder}")


def _check(path: Path, status: os.stat_result, remedy: str) -> None:
    mode = stat.S_IMODE(status.st_mode)
    if mode & _OTHERS:
        raise AuthenticationError(
            f"{path} holds keys and others on this machine can get at it (mode {mode:03o}). Say: {remedy}"
        )
    if status.st_uid not in (os.geteuid(), 0):
        raise AuthenticationError(f"{path} holds keys and belongs to another user. Say: chown {os.geteuid()} {path}")


def _write_new(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _FILE_MODE)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - by its descriptor
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
