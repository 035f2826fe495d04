"""A part of a model on its way into the store."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from layermesh.shared.errors import CheckpointError, DiskFullError
from layermesh.shared.fingerprint import reading, sample_of
from layermesh.shared.library.disk import require_room, storing
from layermesh.shared.manifest import Manifest
from layermesh.shared.parts import CHUNK_BYTES
from layermesh.worker.chunk_file import ChunkFile

PARTIAL_SUFFIX: Final = ".partial"


class PartWriter:
    """Writes the bytes of `part` from `offset` on beside `path`, whose place they take once all have come and are right.

    A context manager; what it leaves behind without `finish` is gone on with the next time. `keep` is called with size and
    sha256 to have it noted that the part is there, just before it is. Where it `is_here` already, nothing is left to do.
    """

    def __init__(
        self, manifest: Manifest, part: str, path: Path, keep: Callable[[int, bytes], None], is_here: bool = False
    ) -> None:
        self.part = part
        self.num_bytes = manifest.part_bytes(part)
        self.offset = self.num_bytes if is_here else 0
        self._is_here = is_here
        self._manifest = manifest
        self._path = path
        self._partial = path.with_name(path.name + PARTIAL_SUFFIX)
        self._keep = keep
        self._hash = hashlib.sha256()
        self._file: ChunkFile | None = None

    def __enter__(self) -> Self:
        """Find out how much is here already, of which a chunk that is not whole counts for nothing.

        Raises DiskFullError where there is no room for the rest, ResourceError where nothing can be written.
        """
        if self._is_here:
            return self
        try:
            with storing(self._path.parent, self.num_bytes):
                self._file = ChunkFile(self._partial)
                self._take_up(self._file)
        except BaseException as error:
            self._close(error)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Close the file; where the disk is full, what was taken of it is given back."""
        self._close(error)

    def write(self, data: bytes | memoryview) -> None:
        """Add `data`, which follows what is here.

        Raises CheckpointError for more than the part has, DiskFullError.
        """
        if self.offset + len(data) > self.num_bytes:
            raise CheckpointError(f"more came of {self.part} than its {self.num_bytes:,} bytes. It will be fetched again.")
        if not data:
            return
        assert self._file is not None
        with storing(self._path.parent, self.num_bytes - self.offset):
            self._file.write(data)
        self._hash.update(data)
        self.offset += len(data)

    def finish(self, sha256: bytes) -> None:
        """Put the part in its place, if it is what was sent, whole, and what its model has there.

        Otherwise raises CheckpointError, after which it begins anew if all of it had come.
        """
        if self._is_here:
            return
        if self.offset < self.num_bytes:
            raise CheckpointError(
                f"only {self.offset:,} of {self.num_bytes:,} bytes came of {self.part}. The rest will be fetched."
            )
        assert self._file is not None
        with storing(self._path.parent, self.num_bytes):
            self._file.flush()
        if self._hash.digest() != sha256 or not self._is_as_described():
            self._partial.unlink(missing_ok=True)
            raise CheckpointError(f"{self.part} of {self._manifest.name} came damaged. It will be fetched again.")
        with storing(self._path.parent, self.num_bytes):
            self._file.sync()
            self._keep(self.num_bytes, sha256)
            self._partial.replace(self._path)

    def _close(self, error: BaseException | None) -> None:
        if self._file is not None:
            self._file.close()
        if isinstance(error, DiskFullError):
            self._partial.unlink(missing_ok=True)

    def _take_up(self, file: ChunkFile) -> None:
        whole = file.size if file.size == self.num_bytes else min(file.size, self.num_bytes) // CHUNK_BYTES * CHUNK_BYTES
        file.cut(whole)
        while chunk := os.read(file.descriptor, CHUNK_BYTES):
            self._hash.update(chunk)
            self.offset += len(chunk)
        require_room(self._path.parent, self.num_bytes - self.offset)

    def _is_as_described(self) -> bool:
        """Whether tensors lie where this machine expects them: the sender's idea of a part may be another."""
        with reading(self._partial) as read:
            return all(
                sample_of(read, placed.offset, placed.num_bytes) == self._manifest.tensors[placed.name].sample
                for placed in self._manifest.layout(self.part)
            )
