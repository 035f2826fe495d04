"""Reading byte ranges of files into memory that is already there."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from layermesh.shared.block_hashes import BlockHashes
from layermesh.shared.errors import CheckpointError


class FileReader:
    """Reads ranges of checkpoint files from any thread, and counts the bytes and the time that reading took.

    `busy_seconds` is the time during which at least one read was under way.
    """

    def __init__(self) -> None:
        self.num_bytes = 0
        self.busy_seconds = 0.0
        self._descriptors: dict[Path, int] = {}
        self._hashes = BlockHashes()
        self._lock = threading.Lock()
        self._active = 0
        self._since = 0.0

    def read_into(self, path: Path, offset: int, target: memoryview) -> None:
        """Fill `target` with the bytes of `path` from `offset` on.

        Raises CheckpointError when the file is gone, cannot be read, ends too early, or is one of a pack and has changed.
        """
        with self._counting():
            try:
                self._hashes.check(path)
                num_read = self._read(self._descriptor(path), offset, target)
            except OSError as error:
                raise CheckpointError(f"{path} cannot be read: {error.strerror}. Is its disk still there?") from error
        if num_read < len(target):
            raise CheckpointError(
                f"{path} ends at byte {offset + num_read}, in the middle of a tensor: it changed or was cut off. "
                "Fetch it again."
            )
        with self._lock:
            self.num_bytes += num_read

    def close(self) -> None:
        """Close the files; a later read opens them again."""
        with self._lock:
            descriptors, self._descriptors = self._descriptors, {}
        for descriptor in descriptors.values():
            os.close(descriptor)

    def _descriptor(self, path: Path) -> int:
        with self._lock:
            if path not in self._descriptors:
                self._descriptors[path] = os.open(path, os.O_RDONLY)
            return self._descriptors[path]

    def _read(self, descriptor: int, offset: int, target: memoryview) -> int:
        done = 0
        while done < len(target):
            got = os.preadv(descriptor, [target[done:]], offset + done)
            if got == 0:
                break
            done += got
        return done

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
