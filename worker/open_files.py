"""Open files that are read from: a bounded number in the whole process, the least recently used closed first."""

import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from layermesh.shared.file_limit import is_out_of_files, soft_limit

MOST_FILES: Final = 1024
LEAST_FILES: Final = 4
_SHARE: Final = 4  # of the descriptors that this process may have: two for each file, and half of them for all else
_F_NOCACHE: Final = 48  # macOS, fcntl.h

Status = tuple[int, int]


class OpenFile:
    """One open file: `plain` goes through the page cache, `direct` past it, where the file system allows that."""

    def __init__(self, path: Path) -> None:
        self.plain = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.direct: int | None = None
        self.num_users = 0
        self.is_wanted = True  # False: to be closed by its last user
        try:
            self.direct = _open_direct(path)
            if self.direct is not None and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(self.plain, 0, 0, os.POSIX_FADV_RANDOM)  # what is left for it are single rows and odd ends
        except BaseException:
            self.close()
            raise

    def status(self) -> Status:
        """Return the size and the time of the last change, in nanoseconds."""
        status = os.fstat(self.plain)
        return status.st_size, status.st_mtime_ns

    def close(self) -> None:
        """Close both descriptors."""
        os.close(self.plain)
        if self.direct is not None:
            os.close(self.direct)


class OpenFiles:
    """Opens files for several readers, and keeps as many open as the limit on this process's descriptors allows.

    A file that is in use is never closed, so for moments there may be as many more as there are threads that read.
    """

    def __init__(self) -> None:
        self._files: OrderedDict[tuple[object, Path], OpenFile] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._files)

    @contextmanager
    def hold(self, owner: object, path: Path) -> Iterator[OpenFile]:
        """Hold the file at `path` open for `owner`. Raises OSError where it cannot be opened."""
        with self._lock:
            file = self._find(owner, path)
            file.num_users += 1
        try:
            yield file
        finally:
            with self._lock:
                file.num_users -= 1
                if not file.is_wanted and not file.num_users:
                    file.close()

    def close(self, owner: object) -> None:
        """Close all files of `owner`, those in use once they are not."""
        with self._lock:
            for key in [key for key in self._files if key[0] is owner]:
                self._drop(key)

    def _find(self, owner: object, path: Path) -> OpenFile:
        key = (owner, path)
        file = self._files.get(key)
        if file is None:
            self._shrink_to(_most_files() - 1)
            file = self._files[key] = self._open(path)
        else:
            self._files.move_to_end(key)
        return file

    def _open(self, path: Path) -> OpenFile:
        """Open a file; where the rest of the process has taken the descriptors, with those of the files that nobody uses."""
        try:
            return OpenFile(path)
        except OSError as error:
            if not is_out_of_files(error) or not self._shrink_to(0):
                raise
        return OpenFile(path)

    def _shrink_to(self, num_files: int) -> int:
        """Close files that nobody uses, the least recently used first, until `num_files` are left; return how many it were."""
        unused = [key for key, file in self._files.items() if not file.num_users]
        spare = unused[: max(len(self._files) - num_files, 0)] if len(self._files) > num_files else []
        for key in spare:
            self._drop(key)
        return len(spare)

    def _drop(self, key: tuple[object, Path]) -> None:
        file = self._files.pop(key)
        file.is_wanted = False
        if not file.num_users:
            file.close()


OPEN_FILES: Final = OpenFiles()  # of this process, whose limit it is


def _most_files() -> int:
    return min(max(soft_limit() // _SHARE, LEAST_FILES), MOST_FILES)


def _open_direct(path: Path) -> int | None:
    """Open `path` past the page cache; None where this system or its file system knows no such thing."""
    if sys.platform == "darwin":
        import fcntl

        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.fcntl(descriptor, _F_NOCACHE, 1)
        return descriptor
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except AttributeError:
        return None
    except OSError as error:
        if is_out_of_files(error):
            raise
        return None
