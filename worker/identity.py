"""A worker's id, which stays the same whatever its name and address: what it stores is known by it."""

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from layermesh.shared.errors import ResourceError
from layermesh.shared.library.disk import storing

MOST_WORKERS = 64  # on one machine, with one store
_ID = re.compile(r"[0-9a-f]{32}")
_ID_BYTES = 32


@dataclass(frozen=True, slots=True)
class WorkerPlace:
    """Where a worker of a store keeps what is its own: its id in one file, and what it shows to others in another."""

    id_file: Path
    credentials: Path

    def read_id(self) -> str:
        """Return the id, made now if there is none."""
        return _read_or_make(self.id_file)

    def write_id(self, worker_id: str) -> None:
        """Be known by another id from now on."""
        with storing(self.id_file.parent, _ID_BYTES):
            self.id_file.write_text(worker_id, "ascii")


@contextmanager
def worker_id(folder: Path) -> Iterator[str]:
    """Hold the first id of `folder` that no other worker holds. Raises ResourceError for a folder that cannot be written."""
    with worker_place(folder) as place:
        yield place.read_id()


@contextmanager
def worker_place(folder: Path) -> Iterator[WorkerPlace]:
    """Hold the first place in `folder` that no other worker holds. Raises ResourceError for a folder that cannot be written."""
    with storing(folder, _ID_BYTES):
        folder.mkdir(parents=True, exist_ok=True)
    for number in range(MOST_WORKERS):
        lock = FileLock(folder / f"worker-{number}.lock")
        try:
            with storing(folder, _ID_BYTES):
                lock.acquire(timeout=0)
        except Timeout:
            continue
        try:
            yield WorkerPlace(folder / f"worker-{number}.id", folder / "keys" / f"worker-{number}.pem")
        finally:
            lock.release()
        return
    raise ResourceError(f"{MOST_WORKERS} workers use {folder} already. Give this one another --store.")


def _read_or_make(path: Path) -> str:
    known = path.read_text("ascii", errors="replace").strip() if path.is_file() else ""
    if _ID.fullmatch(known):
        return known
    made = uuid.uuid4().hex
    with storing(path.parent, _ID_BYTES):
        path.write_text(made, "ascii")
    return made
