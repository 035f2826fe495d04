"""Reading byte ranges of files into memory that is already there, past the page cache where that is faster."""

import errno
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from layermesh.shared.block_hashes import BlockHashes
from layermesh.shared.errors import CheckpointError
from layermesh.shared.model.blocks import PAGE_BYTES
from layermesh.worker.buffers import aligned_memory
from layermesh.worker.page_cache import is_cached

BOUNCE_BYTES: Final = (4 << 20) + PAGE_BYTES  # most that a thread reads at a time where file and memory lie differently
DIRECT_BYTES: Final = 1 << 16  # smaller reads go through the page cache
_F_NOCACHE: Final = 48  # macOS, fcntl.h


class FileReader:
    """Reads ranges of checkpoint files from any thread, and counts the bytes and the time that reading took.

    `busy_seconds` is the time during which at least one read was under way. A cyclic scan gets nothing out of a page cache
    smaller than itself and fills it in vain, so large reads go past it unless what they want already lies there.
    """

    def __init__(self) -> None:
        self.num_bytes = 0
        self.busy_seconds = 0.0
        self._files: dict[Path, _File] = {}
        self._hashes = BlockHashes()
        self._lock = threading.Lock()
        self._active = 0
        self._since = 0.0

    def check(self, path: Path) -> None:
        """Look at a file once; raises CheckpointError where it is not what was packed or stored."""
        self._hashes.check(path)

    def read_into(self, path: Path, offset: int, target: memoryview) -> None:
        """Fill `target` with the bytes of `path` from `offset` on.

        Raises CheckpointError when the file is gone, has changed since it was first read or packed, cannot be read or ends too
        early.
        """
        with self._counting():
            try:
                self.check(path)
                file = self._open(path)
                num_read = file.read(offset, target)
                changed = file.has_changed()
            except OSError as error:
                raise CheckpointError(f"{path} cannot be read: {error.strerror}. Is its disk still there?") from error
        if num_read < len(target):
            raise CheckpointError(
                f"{path} ends at byte {offset + num_read}, in the middle of a tensor: it changed or was cut off. "
                "Fetch it again."
            )
        if changed:
            raise CheckpointError(f"{path} was changed while it was in use. Open the model again once it is complete.")
        with self._lock:
            self.num_bytes += num_read

    @property
    def passes_page_cache(self) -> bool:
        """Whether large reads of all files so far go past the page cache where what they want does not lie there."""
        with self._lock:
            return all(file.goes_direct for file in self._files.values())

    def close(self) -> None:
        """Close the files; a later read opens them again."""
        with self._lock:
            files, self._files = self._files, {}
        for file in files.values():
            file.close()

    def _open(self, path: Path) -> "_File":
        with self._lock:
            if path not in self._files:
                self._files[path] = _File(path)
            return self._files[path]

    @contextmanager
    def _counting(self) -> Iterator[None]:
        with self._lock:
            if self._active == 0:
                self._since = time.monotonic()
            self._active += 1
        try:
            yield
        finally:
            with self._lock:
                self._active -= 1
                if self._active == 0:
                    self.busy_seconds += time.monotonic() - self._since


class _File:
    """One open file: through the page cache, and past it where the file system allows that."""

    def __init__(self, path: Path) -> None:
        self._plain = os.open(path, os.O_RDONLY)
        self._direct = _open_direct(path)
        self.goes_direct = self._direct is not None
        self._status = _status(self._plain)
        if self.goes_direct and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._plain, 0, 0, os.POSIX_FADV_RANDOM)  # what is left for it are single rows and odd ends

    def read(self, offset: int, target: memoryview) -> int:
        """Fill `target` from `offset` on and return how many bytes there were."""
        if not self.goes_direct or len(target) < DIRECT_BYTES or is_cached(self._plain, offset, len(target)):
            return _read(self._plain, offset, target)
        assert self._direct is not None
        try:
            return self._read_direct(self._direct, offset, target)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self.goes_direct = False  # a device with larger sectors, or a file system that promised too much
            return _read(self._plain, offset, target)

    def has_changed(self) -> bool:
        """Whether the file was written to, or cut, since it was opened."""
        return _status(self._plain) != self._status

    def close(self) -> None:
        os.close(self._plain)
        if self._direct is not None:
            os.close(self._direct)

    def _read_direct(self, descriptor: int, offset: int, target: memoryview) -> int:
        array = np.frombuffer(target, dtype=np.uint8)
        if (array.ctypes.data - offset) % PAGE_BYTES:
            return _read_bounced(descriptor, offset, array)
        first = min(-offset % PAGE_BYTES, len(target))  # up to where a page begins
        last = first + (len(target) - first) // PAGE_BYTES * PAGE_BYTES  # from where less than a page is left
        done = 0
        for source, start, end in ((self._plain, 0, first), (descriptor, first, last), (self._plain, last, len(target))):
            got = _read(source, offset + start, target[start:end])
            done += got
            if got < end - start:
                break
        return done


def _open_direct(path: Path) -> int | None:
    """Open `path` past the page cache; None where this system or its file system knows no such thing."""
    if sys.platform == "darwin":
        import fcntl

        descriptor = os.open(path, os.O_RDONLY)
        fcntl.fcntl(descriptor, _F_NOCACHE, 1)
        return descriptor
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECT)
    except (OSError, AttributeError):
        return None


def _status(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def _read(descriptor: int, offset: int, target: memoryview) -> int:
    done = 0
    while done < len(target):
        got = os.preadv(descriptor, [target[done:]], offset + done)
        if got == 0:
            break
        done += got
    return done


_bounce = threading.local()


def _read_bounced(descriptor: int, offset: int, target: "np.ndarray[tuple[int], np.dtype[np.uint8]]") -> int:
    """Read whole pages into memory of this thread's own, of which only as much is taken as was ever read, and copy them."""
    memory: memoryview | None = getattr(_bounce, "memory", None)
    if memory is None:
        memory = _bounce.memory = memoryview(aligned_memory(BOUNCE_BYTES))
    pages = np.frombuffer(memory, dtype=np.uint8)
    done = 0
    while done < len(target):
        start = (offset + done) // PAGE_BYTES * PAGE_BYTES
        skipped = offset + done - start
        wanted = min(len(target) - done, BOUNCE_BYTES - skipped)
        padded = -(-(skipped + wanted) // PAGE_BYTES) * PAGE_BYTES
        got = min(os.preadv(descriptor, [memory[:padded]], start) - skipped, wanted)
        if got <= 0:
            break
        np.copyto(target[done : done + got], pages[skipped : skipped + got])  # lets other threads run, unlike a memoryview
        done += got
    return done
