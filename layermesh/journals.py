"""Where the journals of answers lie that have not come to an end."""

import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from layermesh.shared.errors import ResourceError, UsageError
from layermesh.shared.library.disk import is_file, storing
from layermesh.shared.library.home import data_home

MOST_JOURNALS: Final = 32  # the oldest go first
_ID: Final = re.compile(r"[0-9a-f]{8}")
_SUFFIX: Final = ".journal"
_LOCK_BYTES: Final = 4096


def journals_folder() -> Path:
    """Return the folder, which need not exist yet."""
    return data_home() / "journals"


@contextmanager
def new_journal(lost: Callable[[Exception], None]) -> Iterator[Path | None]:
    """Hold the path of a journal that does not exist yet; old ones make room.

    None where no journal can be written in this user's folder; `lost` is told why.
    """
    with ExitStack() as stack:
        path: Path | None = None
        try:
            _make_room()
            path = stack.enter_context(_held(journals_folder() / f"{secrets.token_hex(4)}{_SUFFIX}"))
        except (ResourceError, OSError) as error:
            lost(error)
        yield path


def _make_room() -> None:
    for path in _newest_first(journals_folder())[MOST_JOURNALS - 1 :]:
        with suppress(Timeout), _held(path):
            path.unlink(missing_ok=True)


@contextmanager
def old_journal(answer_id: str | None) -> Iterator[Path]:
    """Hold the journal of the answer by that id, or the newest that nobody holds. Raises UsageError where there is none."""
    folder = journals_folder()
    if answer_id is not None and not _ID.fullmatch(answer_id):
        raise UsageError(f"answers are known by eight letters and digits, such as 1f0a9b3c, not {answer_id[:40]!r}.")
    paths = _newest_first(folder) if answer_id is None else [folder / f"{answer_id}{_SUFFIX}"]
    for path in paths:
        if not is_file(path):
            continue
        try:
            with _held(path):
                yield path
                return
        except Timeout:
            if answer_id is not None:
                raise UsageError(f"answer {answer_id} is being made by another process.") from None
    what = "no answer was interrupted" if answer_id is None else f"no answer {answer_id} was interrupted"
    raise UsageError(f"{what}, or it is too long ago. Ask again.")


@contextmanager
def _held(path: Path) -> Iterator[Path]:
    """Keep other processes from it. Raises Timeout where one holds it, ResourceError where the folder cannot be written."""
    lock = FileLock(path.with_suffix(".lock"), mode=0o600)
    try:
        with storing(path.parent, _LOCK_BYTES):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock.acquire(timeout=0)
    except NotImplementedError as error:
        raise ResourceError(f"cannot lock files in {path.parent}: {error}. Point LAYERMESH_HOME at another disk.") from error
    try:
        yield path
    finally:
        with suppress(OSError):  # what is left there is removed when it is the oldest
            if not path.exists():
                path.with_suffix(".lock").unlink(missing_ok=True)
        lock.release()


def _newest_first(folder: Path) -> list[Path]:
    found: dict[Path, float] = {}
    with suppress(OSError):  # there is no such folder, or it is not for us
        for name in os.listdir(folder):  # noqa: PTH208 - Path.glob says nothing of a folder that cannot be read
            if name.endswith(_SUFFIX):
                with suppress(FileNotFoundError):  # another process has just come to its end
                    found[folder / name] = (folder / name).stat().st_mtime
    return sorted(found, key=lambda path: found[path], reverse=True)
