"""A file that is written from front to back, past the page cache where that is possible."""

import errno
import os
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from layermesh.shared.parts import CHUNK_BYTES
from layermesh.worker.buffers import aligned_memory

_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC


class ChunkFile:
    """The file at `path`, of which what was there stays up to `cut`; then `write` adds to it.

    Whole chunks go to the disk as they are there: fresh pages of the cache cost more time than the disk does, and the weights
    will be read past the cache as well. Raises OSError for whatever the system has against it.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, _FLAGS, 0o600)
        self._direct = _open_direct(path)
        self._chunk = memoryview(aligned_memory(CHUNK_BYTES))
        self._filled = 0
        self._end = os.fstat(self._descriptor).st_size  # of what is in the file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    @property
    def descriptor(self) -> int:
        """What reads it from its beginning."""
        return self._descriptor

    @property
    def size(self) -> int:
        """Bytes that are in the file."""
        return self._end

    def cut(self, num_bytes: int) -> None:
        """Keep the first `num_bytes` of it, whole chunks or all there will be."""
        os.ftruncate(self._descriptor, num_bytes)
        self._end = num_bytes

    def write(self, data: bytes | memoryview) -> None:
        """Add `data`; what does not fill a chunk yet waits for more, or for `flush`."""
        left = memoryview(data)
        while left:
            count = min(len(left), CHUNK_BYTES - self._filled)
            self._chunk[self._filled : self._filled + count] = left[:count]
            self._filled += count
            left = left[count:]
            if self._filled == CHUNK_BYTES:
                self.flush()

    def flush(self) -> None:
        """Put everything that was written into the file, and there is nothing to add to a chunk that is not whole."""
        waiting = self._chunk[: self._filled]
        while waiting:
            count = self._put(waiting)
            self._end += count
            waiting = waiting[count:]
        self._filled = 0

    def sync(self) -> None:
        """Have all of it on the disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close it, without what was not flushed."""
        os.close(self._descriptor)
        if self._direct is not None:
            os.close(self._direct)

    def _put(self, data: memoryview) -> int:
        if self._direct is not None and len(data) == CHUNK_BYTES and self._end % CHUNK_BYTES == 0:
            try:
                return os.pwrite(self._direct, data, self._end)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                os.close(self._direct)
                self._direct = None  # a device with larger sectors, or a file system that promised too much
        return os.pwrite(self._descriptor, data, self._end)


def _open_direct(path: Path) -> int | None:
    try:
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_DIRECT)
    except (OSError, AttributeError):  # not on this file system, or not on this system
        return None
