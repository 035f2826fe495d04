"""The table of a folder's files with their sizes and hashes, and the check that a file still is what was stored."""

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from msgpack import UnpackException, packb, unpackb

from layermesh.shared.errors import CheckpointError, LayermeshError
from layermesh.shared.file_limit import is_out_of_files, too_many_files

TABLE: Final = "blocks.msgpack"
PARTIAL_TABLE: Final = "blocks.msgpack.partial"
MAX_TABLE_BYTES: Final = 32 << 20
_READ_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class BlockTableFile:
    """What `blocks.msgpack` holds: the `key` and `name` of a pack or a stored model, and of each file its bytes and sha256."""

    key: str
    name: str
    files: Mapping[str, tuple[int, bytes]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "BlockTableFile":
        """Read the table at `path`; raises CheckpointError for one that is missing, damaged or too large."""
        try:
            if path.stat().st_size > MAX_TABLE_BYTES:
                raise _damaged(path)
            table: Any = unpackb(path.read_bytes(), strict_map_key=True)
            files = {str(name): (int(size), bytes(digest)) for name, (size, digest) in table["files"].items()}
            return cls(str(table["key"]), str(table["name"]), files)
        except OSError as error:
            raise _unreadable(path, error) from error
        except (ValueError, TypeError, LookupError, AttributeError, UnpackException) as error:
            raise _damaged(path) from error

    def to_bytes(self) -> bytes:
        """Return the table as it is stored."""
        files = {name: list(entry) for name, entry in self.files.items()}
        return cast("bytes", packb({"key": self.key, "name": self.name, "files": files}))


class BlockHashes:
    """Checks each file of a pack or a store once, before anything of it is used; files of other checkpoints pass unread."""

    def __init__(self) -> None:
        self._good: set[Path] = set()
        self._tables: dict[Path, BlockTableFile | None] = {}
        self._locks: dict[Path, threading.Lock] = {}
        self._lock = threading.Lock()

    def check(self, path: Path) -> None:
        """Raise CheckpointError if `path` belongs to a pack or a store and is not, byte for byte, what was stored."""
        if path in self._good:
            return
        with self._lock_for(path):
            if path not in self._good:
                self._compare(path)
                self._good.add(path)

    def _lock_for(self, path: Path) -> threading.Lock:
        with self._lock:
            if path.parent not in self._tables:
                table = path.parent / TABLE
                self._tables[path.parent] = BlockTableFile.read(table) if table.is_file() else None
            return self._locks.setdefault(path, threading.Lock())

    def _compare(self, path: Path) -> None:
        table = self._tables[path.parent]
        if table is None:
            return
        noted = table.files.get(path.name)
        if noted is None:
            raise CheckpointError(f"{path} is not complete, or was never stored. Fetch or pack the model again.")
        if noted != (path.stat().st_size, file_hash(path)):
            raise CheckpointError(
                f"{path} is damaged: its bytes are not those that were stored. Delete {path.parent} and fetch or pack the "
                "model again, and look after that disk."
            )


def file_hash(path: Path) -> bytes:
    """Return the sha256 of a file; raises CheckpointError where it cannot be read."""
    digest = hashlib.sha256()
    buffer = bytearray(_READ_BYTES)
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(memoryview(buffer)[:count])
    except OSError as error:
        raise _unreadable(path, error) from error
    return digest.digest()


def _unreadable(path: Path, error: OSError) -> LayermeshError:
    if is_out_of_files(error):
        return too_many_files(path, error)
    return CheckpointError(f"cannot read {path}: {error.strerror or error}. Check that it is there and that you may read it.")


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is damaged. Delete {path.parent} and fetch or pack the model again.")
