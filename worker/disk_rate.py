"""How fast the disk under a folder is read, past the page cache, the way blocks are."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from layermesh.shared.errors import CheckpointError
from layermesh.shared.library.disk import free_bytes
from layermesh.shared.model.blocks import NUM_READERS, READ_BYTES
from layermesh.worker.buffers import aligned_memory
from layermesh.worker.files import FileReader

MOST_BYTES: Final = 256 << 20
FALLBACK_RATE: Final = 100e6  # of a disk that has no room to measure on, or may not be written to
_STEP_BYTES: Final = 16 << 20  # written, and brought to the disk, at a time
_PREFIX: Final = ".measuring-"
_ABANDONED_SECONDS: Final = 3600.0
_SHARE: Final = 1 / 8  # of the free space that is taken
_WRITING_SECONDS: Final = 0.8
_READING_SECONDS: Final = 0.6


def measure_disk(folder: Path, most_bytes: int = MOST_BYTES) -> float:
    """Return the bytes per second at which weights in `folder` are read.

    It writes a file of up to `most_bytes` there, less on a small or slow disk, and deletes it. Where that cannot be done it
    returns `FALLBACK_RATE`, on which nobody's hopes are disappointed.
    """
    try:
        with _written(folder, most_bytes) as path:
            return _read(path) or FALLBACK_RATE
    except (OSError, CheckpointError):
        return FALLBACK_RATE


@contextmanager
def _written(folder: Path, most_bytes: int) -> Iterator[Path]:
    """A file that lies on the disk and not in the page cache."""
    _sweep(folder)
    room = int(free_bytes(folder) * _SHARE)
    step = os.urandom(min(_STEP_BYTES, most_bytes, room) // READ_BYTES * READ_BYTES)  # which no file system makes shorter
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=folder) as temporary:
        path = Path(temporary) / "disk"
        ends = time.monotonic() + _WRITING_SECONDS
        with path.open("wb", buffering=0) as file:
            while step and file.tell() + len(step) <= min(most_bytes, room) and time.monotonic() < ends:
                file.write(step)
                os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        yield path


def _sweep(folder: Path) -> None:
    """Remove what is left of a measurement that was killed."""
    for left in folder.glob(f"{_PREFIX}*"):
        if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def _read(path: Path) -> float:
    """Read the file once, for a moment at most; 0 where there is nothing to read."""
    files = FileReader()
    buffers: SimpleQueue[memoryview] = SimpleQueue()
    for _ in range(NUM_READERS):
        buffers.put(memoryview(aligned_memory(READ_BYTES)))
    ends = time.monotonic() + _READING_SECONDS

    def read(offset: int) -> None:
        if time.monotonic() < ends:
            buffer = buffers.get()
            try:
                files.read_into(path, offset, buffer)
            finally:
                buffers.put(buffer)

    try:
        with ThreadPoolExecutor(NUM_READERS) as readers:
            list(readers.map(read, range(0, path.stat().st_size, READ_BYTES)))
    finally:
        files.close()
    return files.num_bytes / max(files.busy_seconds, 1e-9)
