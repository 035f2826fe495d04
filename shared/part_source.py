"""Handing out the parts of a model, chunk by chunk."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from layermesh.shared.block_hashes import BlockHashes
from layermesh.shared.checkpoints.tensors import Checkpoint
from layermesh.shared.errors import CheckpointError
from layermesh.shared.fingerprint import ReadAt, reading
from layermesh.shared.manifest import Manifest
from layermesh.shared.parts import Stretch, chunks


class PartReading(Iterator[bytes]):
    """The bytes of a part from `offset` on, in chunks; those before are read too, because the hash is of the whole part.

    `chunks` are all there are. `check` is told the sha256 at the end, before anybody else is, and may raise.
    """

    def __init__(self, chunks: Iterable[bytes], offset: int, check: Callable[[bytes], None] = lambda _sha256: None) -> None:
        self._chunks = iter(chunks)
        self._skip_bytes = offset
        self._check = check
        self._hash = hashlib.sha256()
        self._sha256: bytes | None = None

    @property
    def sha256(self) -> bytes:
        """The hash of the whole part, once all chunks have been taken; raises ValueError before that."""
        if self._sha256 is None:
            raise ValueError("the hash of a part is known when all of it has been read")
        return self._sha256

    def __next__(self) -> bytes:
        """Return the next chunk; raises CheckpointError where it cannot be read."""
        for chunk in self._chunks:
            self._hash.update(chunk)
            skipped = min(self._skip_bytes, len(chunk))
            self._skip_bytes -= skipped
            if skipped < len(chunk):
                return chunk[skipped:] if skipped else chunk
        if self._sha256 is None:
            sha256 = self._hash.digest()
            self._check(sha256)
            self._sha256 = sha256
        raise StopIteration


class PartSource:
    """The parts of the model that `manifest` describes, made of the files of a checkpoint as it lies here."""

    def __init__(self, checkpoint: Checkpoint, manifest: Manifest) -> None:
        self._tensors = checkpoint.tensors
        self._manifest = manifest
        self._hashes = BlockHashes()
        self._noted = {path: _look(path) for path in {tensor.path for tensor in checkpoint.tensors.values()}}

    def read(self, part: str, offset: int = 0) -> PartReading:
        """Return the chunks of `part` from `offset` on, as large as each other but for the first and the last.

        Raises ValueError for a part that there is not. Reading raises CheckpointError where a file is gone, damaged or not
        what it was.
        """
        if part not in self._manifest.parts:
            raise ValueError(f"{self._manifest.name} has no part {ascii(part)[:40]}")
        return PartReading(self._chunks(part), offset, lambda _sha256: self._check_unchanged(part))

    def _chunks(self, part: str) -> Iterator[bytes]:
        with ExitStack() as stack:
            files: dict[Path, ReadAt] = {}
            for path in self._paths(part):
                self._hashes.check(path)
                files[path] = stack.enter_context(reading(path))
            for chunk in chunks(self._manifest.layout(part)):
                yield self._join(chunk, files)

    def _join(self, chunk: Sequence[Stretch], files: dict[Path, ReadAt]) -> bytes:
        pieces = [self._piece(stretch, files) for stretch in chunk]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _piece(self, stretch: Stretch, files: dict[Path, ReadAt]) -> bytes:
        if stretch.name is None:
            return bytes(stretch.num_bytes)
        stored = self._tensors[stretch.name]
        return files[stored.path](stored.offset + stretch.start, stretch.num_bytes)

    def _paths(self, part: str) -> set[Path]:
        return {self._tensors[name].path for name in self._manifest.parts[part]}

    def _check_unchanged(self, part: str) -> None:
        for path in self._paths(part):
            if _look(path) != self._noted[path]:
                raise CheckpointError(f"{path} was changed while it was in use. Open the model again once it is complete.")


def _look(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}. Is its disk still there?") from error
    return status.st_size, status.st_mtime_ns
