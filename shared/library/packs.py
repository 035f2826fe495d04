"""The packed models in the user's cache, one folder each, named after what it was packed from and how."""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from layermesh.shared.block_hashes import PARTIAL_TABLE, TABLE, BlockTableFile
from layermesh.shared.errors import CheckpointError
from layermesh.shared.library.disk import is_file, is_folder
from layermesh.shared.library.home import home

LOCK: Final = ".lock"
INDEX: Final = "model.safetensors.index.json"  # of a pack, it is written last


@dataclass(frozen=True, slots=True)
class CachedPack:
    """A pack in the cache, or what there is of it yet; `name` is its source's name, an @ and its form."""

    name: str
    path: Path
    num_bytes: int
    used: float
    complete: bool


def packed_folder() -> Path:
    """Return the folder of all packs."""
    return home() / "packed"


def is_complete(folder: Path) -> bool:
    """Return whether `folder` holds a whole pack."""
    return is_file(folder / INDEX) and is_file(folder / TABLE)


def cached_packs() -> list[CachedPack]:
    """Return what is in the cache, half-made packs too."""
    cache = packed_folder()
    return list(_packs(cache)) if is_folder(cache) else []


def remove_packs(name: str) -> int | None:
    """Delete all packs called `name` and return the bytes this freed; None where there is none."""
    named = [pack for pack in cached_packs() if pack.name == name]
    for pack in named:
        shutil.rmtree(pack.path)
    return sum(pack.num_bytes for pack in named) if named else None


def note_use(folder: Path) -> None:
    """Note that a pack was used now, if the cache can be written to."""
    with suppress(OSError):
        os.utime(folder)


def _packs(cache: Path) -> Iterator[CachedPack]:
    for folder in sorted(cache.iterdir()):
        complete = is_complete(folder)
        with suppress(CheckpointError, OSError):
            table = BlockTableFile.read(folder / (TABLE if complete else PARTIAL_TABLE))
            num_bytes = sum(file.stat().st_size for file in folder.iterdir())
            yield CachedPack(table.name, folder, num_bytes, folder.stat().st_mtime, complete)
