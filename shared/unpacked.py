"""The unpacked heads of GGUF files in the cache: which file each one is of, and when it may go."""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from layermesh.shared.library.disk import is_folder

UNPACKING: Final = "unpacking-"  # what the name of a head begins with until it is complete
_SOURCE: Final = "source.json"
_UNPACKING_SECONDS: Final = 3600
_UNUSED_SECONDS: Final = 30 * 24 * 3600  # what another version of layermesh made looks like any other, but nobody opens it


def note_sources(folder: Path, sources: Sequence[Path]) -> None:
    """Write down in `folder` which files it is the head of, as they are now."""
    first, *others = map(_look, sources)
    (folder / _SOURCE).write_text(json.dumps(first | {"others": others}), encoding="utf-8")


def _look(source: Path) -> dict[str, object]:
    status = source.stat()
    return {"path": str(source.resolve()), "num_bytes": status.st_size, "modified_ns": status.st_mtime_ns}


def note_use(folder: Path) -> None:
    """Keep `folder` from going as unused, if the cache can be written to."""
    with contextlib.suppress(OSError):
        os.utime(folder)


def sweep_unpacked(cache: Path) -> int:
    """Delete the heads in `cache` that are of no use any more and return the bytes this freed.

    That is where the file is gone or has changed, nobody used it for a month, or a killed process left it half done. What
    cannot be deleted stays.
    """
    freed = 0
    for folder in cache.iterdir() if is_folder(cache) else ():
        with contextlib.suppress(OSError):
            if folder.is_dir() and _is_stale(folder):
                num_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
                shutil.rmtree(folder)
                freed += num_bytes
    return freed


def _is_stale(folder: Path) -> bool:
    unused = time.time() - folder.stat().st_mtime
    if folder.name.startswith(UNPACKING):
        return unused > _UNPACKING_SECONDS
    return unused > _UNUSED_SECONDS or not _has_source(folder)


def _has_source(folder: Path) -> bool:
    try:
        noted = json.loads((folder / _SOURCE).read_text(encoding="utf-8"))
        others = noted.pop("others", [])  # an earlier version knew of one file
        return all(_look(Path(file["path"])) == file for file in (noted, *others))
    except (FileNotFoundError, NotADirectoryError, ValueError, LookupError, TypeError, AttributeError):
        return False
