"""Reading byte ranges of files into memory that is already there, past the page cache where that is faster."""

import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from layermesh.shared.block_hashes import BlockHashes
from layermesh.shared.errors import CheckpointError
from layermesh.shared.file_limit import is_out_of_files, too_many_files
from layermesh.shared.model.blocks import PAGE_BYTES
from layermesh.worker.buffers import aligned_memory
from layermesh.worker.open_files import OPEN_FILES, OpenFile, Status
from layermesh.worker.page_cache import is_cached

BOUNCE_BYTES: Final = (4 << 20) + PAGE_BYTES  # most that a thread reads at a time where file and memory lie differently
DIRECT_BYTES: Final = 1 << 16  # smaller reads go through the page cache


@dataclass(slots=True)
class _Known:
    """What a reader knows of a file, whether or not it is open now: how it was at first, and whether it goes direct."""

    status: Status
    goes_direct: bool


class FileReader:
    """Reads ranges of checkpoint files from any thread, and counts the bytes and the time that reading took.

    `busy_seconds` is the time during which at least one read was under way. A cyclic scan gets nothing out of a page cache
    smaller than itself and fills it in vain, so large reads go past it unless what they want already lies there.
    """

    def __init__(self) -> None:
        self.num_bytes = 0
        self.busy_seconds = 0.0
        self._known: dict[Path, _Known] = {}
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
        early, ResourceError when too many files are open.
        """
        with self._counting():
            try:
                self.check(path)
                with OPEN_FILES.hold(self, path) as file:
                    known = self._known_of(path, file)
                    num_read = _read_from(file, known, offset, target)
                    changed = file.status() != known.status
            except OSError as error:
                if is_out_of_files(error):
                    raise too_many_files(path, error) from error
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
            return all(known.goes_direct for known in self._known.values())

    def close(self) -> None:
        """Close the files; a later read opens them again."""
        OPEN_FILES.close(self)
        with self._lock:
            self._known = {}

    def _known_of(self, path: Path, file: OpenFile) -> _Known:
        """Return what is known of a file: how it was at the first read, also where it was closed and opened again since."""
        known = self._known.get(path)
        if known is None:
            with self._lock:
                known = self._known.setdefault(path, _Known(file.status(), file.direct is not None))
        return known

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


def _read_from(file: OpenFile, known: _Known, offset: int, target: memoryview) -> int:
    """Fill `target` from `offset` on and return how many bytes there were."""
    plain, direct = file.plain, file.direct
    if direct is None or not known.goes_direct or len(target) < DIRECT_BYTES or is_cached(plain, offset, len(target)):
        return _read(plain, offset, target)
    try:
        return _read_direct(plain, direct, offset, target)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        known.goes_direct = False  # a device with larger sectors, or a file system that promised too much
        return _read(plain, offset, target)


def _read_direct(plain: int, direct: int, offset: int, target: memoryview) -> int:
    array = np.frombuffer(target, dtype=np.uint8)
    if (array.ctypes.data - offset) % PAGE_BYTES:
        return _read_bounced(direct, offset, array)
    first = min(-offset % PAGE_BYTES, len(target))  # up to where a page begins
    last = first + (len(target) - first) // PAGE_BYTES * PAGE_BYTES  # from where less than a page is left
    done = 0
    for source, start, end in ((plain, 0, first), (direct, first, last), (plain, last, len(target))):
        got = _read(source, offset + start, target[start:end])
        done += got
        if got < end - start:
            break
    return done


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
