"""One model in the store: its description, and as many of its parts as were fetched."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from filelock import FileLock

from layermesh.shared.block_hashes import TABLE, BlockTableFile, file_hash
from layermesh.shared.checkpoints.tensors import Checkpoint, StoredTensor
from layermesh.shared.errors import CheckpointError
from layermesh.shared.fingerprint import reading
from layermesh.shared.library.disk import storing
from layermesh.shared.manifest import Manifest
from layermesh.shared.packing.block_file import flush_folder
from layermesh.shared.part_source import PartReading
from layermesh.shared.parts import CHUNK_BYTES
from layermesh.worker.in_use import used
from layermesh.worker.part_writer import PARTIAL_SUFFIX, PartWriter

MANIFEST: Final = "manifest.msgpack"
CONFIG: Final = "config"
PART_SUFFIX: Final = ".weights"
UNNEEDED: Final = "unneeded"  # where the tensors would be that no part has
_LOCK: Final = ".lock"


class StoredModel:
    """The model that `manifest` describes, in `folder`. `use_lock` is the file that says whether it is in use."""

    def __init__(self, folder: Path, manifest: Manifest, use_lock: Path) -> None:
        self.folder = folder
        self.manifest = manifest
        self._use_lock = use_lock

    def missing(self, parts: Iterable[str]) -> tuple[str, ...]:
        """Return those of `parts` that are not here, or not all of them."""
        noted = self._table().files
        return tuple(part for part in parts if not self._is_here(part, noted.get(self._file(part).name)))

    def missing_bytes(self, parts: Iterable[str]) -> int:
        """Return the bytes that have still to come for `parts`."""
        return sum(self._missing_bytes(part) for part in self.missing(parts))

    @contextmanager
    def receiving(self, part: str) -> Iterator[PartWriter]:
        """Give a writer for `part` that goes on where an earlier one was interrupted; waits for another process that has one.

        All of it may be here by then: its offset is at the end, and `finish` is as good as done. Raises CheckpointError where
        the model was removed meanwhile, ValueError for a part that there is not, DiskFullError, ResourceError.
        """
        if part not in self.manifest.parts:
            raise ValueError(f"{self.manifest.name} has no part {ascii(part)[:40]}")
        with used(self._use_lock):
            if not (self.folder / MANIFEST).is_file():
                raise CheckpointError(f"{self.manifest.name} was removed from {self.folder.parent}. Prepare it again.")
            path = self._file(part)
            with FileLock(self.folder / f".{path.name}{_LOCK}"):
                is_here = not self.missing([part])
                with PartWriter(self.manifest, part, path, lambda *noted: self._note(path.name, noted), is_here) as writer:
                    yield writer

    def read(self, part: str, offset: int = 0) -> PartReading:
        """Return the chunks of `part` from `offset` on, to hand them on.

        Raises CheckpointError where it is not here; reading does where it is damaged.
        """
        noted = self._table().files.get(self._file(part).name) if part in self.manifest.parts else None
        if noted is None or self.missing([part]):
            raise CheckpointError(f"{ascii(part)[:40]} of {self.manifest.name} is not here. Ask another worker.")

        def check(sha256: bytes) -> None:
            if sha256 != noted[1]:
                raise CheckpointError(f"{self._file(part)} is damaged: its bytes are not those that came. Fetch it again.")

        return PartReading(_chunks(self._file(part), noted[0]), offset, check)

    def checkpoint(self) -> Checkpoint:
        """Return it as a checkpoint; reading a tensor whose part is not here raises CheckpointError."""
        with storing(self.folder, sum(map(len, self.manifest.files.values()))):
            self._restore_config()
        tensors = {name: self._stored(name, UNNEEDED, 0) for name in self.manifest.tensors}
        for part in self.manifest.parts:
            for placed in self.manifest.layout(part):
                tensors[placed.name] = self._stored(placed.name, self._file(part).name, placed.offset)
        return Checkpoint(
            path=self.folder,
            config_dir=self.folder / CONFIG,
            tokenizer_dir=None,
            tensors=tensors,
            gguf_architecture=self.manifest.gguf_architecture,
        )

    def drop_damaged(self, parts: Iterable[str]) -> tuple[str, ...]:
        """Delete those of `parts` whose bytes are no longer what came, and return them: they have to be fetched again."""
        parts, noted = tuple(parts), self._table().files
        here = [part for part in parts if part not in self.missing(parts)]
        damaged = [part for part in here if file_hash(self._file(part)) != noted[self._file(part).name][1]]
        for part in damaged:
            self._file(part).unlink(missing_ok=True)
        return tuple(damaged)

    def write_description(self) -> None:
        """Write what the model is to its folder, which must be in use; parts that were divided otherwise are deleted."""
        (self.folder / CONFIG).mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / _LOCK):
            alike = self._alike()
            for file in self.folder.iterdir():
                part_file = file.name.removesuffix(PARTIAL_SUFFIX)
                if part_file.endswith(PART_SUFFIX) and part_file not in alike:
                    file.unlink()
            self._restore_config()
            self._write_table({name: entry for name, entry in self._table().files.items() if name in alike} if alike else {})
            write_whole(self.folder / MANIFEST, self.manifest.to_bytes())

    def _alike(self) -> set[str]:
        """The files of the parts here that an earlier manifest divided in the same way, if there was one."""
        try:
            earlier = Manifest.parse((self.folder / MANIFEST).read_bytes())
            self._table()
        except (OSError, CheckpointError):
            return set()
        return {file_name(part) for part, names in self.manifest.parts.items() if earlier.parts.get(part) == names}

    def _restore_config(self) -> None:
        """Have the configuration on the disk be that of the manifest."""
        for name, content in self.manifest.files.items():
            file = self.folder / CONFIG / name
            if not file.is_file() or file.read_bytes() != content:
                write_whole(file, content)

    def _note(self, file: str, noted: tuple[int, bytes]) -> None:
        with FileLock(self.folder / _LOCK):
            self._write_table({**self._table().files, file: noted})

    def _write_table(self, files: dict[str, tuple[int, bytes]]) -> None:
        table = BlockTableFile(self.manifest.fingerprint, self.manifest.name, files)
        write_whole(self.folder / TABLE, table.to_bytes())

    def _table(self) -> BlockTableFile:
        return BlockTableFile.read(self.folder / TABLE)

    def _is_here(self, part: str, noted: tuple[int, bytes] | None) -> bool:
        file = self._file(part)
        return noted is not None and file.is_file() and file.stat().st_size == noted[0] == self.manifest.part_bytes(part)

    def _missing_bytes(self, part: str) -> int:
        partial = self._file(part).with_name(self._file(part).name + PARTIAL_SUFFIX)
        there = partial.stat().st_size if partial.is_file() else 0
        return max(self.manifest.part_bytes(part) - there, 0)

    def _stored(self, name: str, file: str, offset: int) -> StoredTensor:
        entry = self.manifest.tensors[name]
        return StoredTensor(name, entry.encoding, entry.shape, self.folder / file, offset, entry.num_bytes)

    def _file(self, part: str) -> Path:
        return self.folder / file_name(part)


def file_name(part: str) -> str:
    """Return the name of the file that holds `part`."""
    return part.replace(" ", "-") + PART_SUFFIX


def part_name(file: str) -> str:
    """Return the part that the file of that name holds."""
    return file.removesuffix(PART_SUFFIX).replace("-", " ")


def write_whole(path: Path, content: bytes) -> None:
    """Write a small file, whole or not at all."""
    temporary = path.with_name(f"{path.name}{PARTIAL_SUFFIX}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    flush_folder(path.parent)


def _chunks(path: Path, num_bytes: int) -> Iterator[bytes]:
    with reading(path) as read:
        for start in range(0, num_bytes, CHUNK_BYTES):
            yield read(start, min(CHUNK_BYTES, num_bytes - start))
